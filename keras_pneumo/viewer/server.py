"""The page's server: static files, answers for a folder's radiographs and for dropped ones, and readings.

Every error becomes ``{"error": sentence}``, and the page goes on: of a file with 422, of too much at once with 503, of
the program itself with 500 and a log (``failed``). Starlette and uvicorn do the serving, within the limits of
:mod:`.limits`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.data.radiographs.raster import read_limited
from keras_pneumo.detector.summary import UNKNOWN_ERRORS
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.metrics import ratio
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.storage.tables import one_line
from keras_pneumo.viewer.guard import Guard, Keys
from keras_pneumo.viewer.limits import (
    BUSY,
    RETRY_SECONDS,
    SETTINGS,
    BusyError,
    LimitedProtocol,
    PiecewiseResponse,
    TooLargeError,
    Turns,
    body_of,
)
from keras_pneumo.viewer.page_answer import PageDetector, heat_map_sentences
from keras_pneumo.viewer.readings import Readings

ADDRESS = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
MAX_DROP = 64 * 2**20
"""Bytes of the largest file that the page accepts: twice an uncompressed radiograph of 16 megapixels."""

CACHED = 8
"""Answers kept in memory, so that next and previous are immediate."""

MAX_READING = 10_000
"""Bytes of the largest verdict."""

Failed = Callable[[BaseException], str]
"""Records an error that nobody foresaw, and gives the sentence for the page."""

Files = list[tuple[Path, str]]
PageAnswer = asyncio.Future[dict[str, Any]]
"""The answer for one radiograph. It is cached from its start: one that is read ahead may be wanted before it ends."""


def make_app(
    page_detector: PageDetector, files: Files, readings: Readings, port: int, keys: Keys, failed: Failed
) -> Starlette:
    """The application, for a server at ``port``.

    Args:
        page_detector: answers for the bytes of a file.
        files: radiographs of the folder, with their names; may be empty.
        readings: keeps the verdicts.
        port: of the page's address.
        keys: open the page.
        failed: records an error that nobody foresaw.
    """
    detector = page_detector.detector
    cache: OrderedDict[str, PageAnswer] = OrderedDict()
    names = [_shown(name) for _, name in files]
    turns = Turns()

    def begin(key: str, name: str, load: Callable[[], bytes]) -> None:
        def forget_failure(ended: PageAnswer) -> None:
            if cache.get(key) is ended and not _succeeded(ended):
                del cache[key]

        cache[key] = asyncio.ensure_future(run_in_threadpool(lambda: page_detector.answer(load(), name)))
        cache[key].add_done_callback(forget_failure)

    async def answered(key: str, name: str, load: Callable[[], bytes]) -> Response:
        if key not in cache:
            begin(key, name, load)
        begun = cache[key]
        try:
            answer = await asyncio.shield(begun)  # it goes on for others if this request ends
        except UnreadableImage as error:
            return _refused(f"{name} cannot be shown: {_with_full_stop(one_line(str(error), 300))}")
        cache[key] = begun
        cache.move_to_end(key)
        while len(cache) > CACHED:
            cache.popitem(last=False)
        verdict = readings.verdicts(detector.version).get(answer["key"])
        whole = JSONResponse({**answer, "name": name, "verdict": verdict}).body
        return PiecewiseResponse(whole)

    def guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except PneumoError as error:
                return _refused(str(error))
            except Exception as error:  # whatever happens, the page goes on
                return _refused(failed(error), 500)

        return answer

    async def page(_: Request) -> Response:
        return FileResponse(PAGE / "page.html")

    async def about(_: Request) -> Response:
        counts = detector.counts
        positives = counts.true_positive + counts.false_negative
        return JSONResponse(
            {
                "name": detector.name,
                "version": detector.version,
                "threshold": detector.threshold,
                "images": counts.images,
                "patients": counts.patients,
                "prevalence": ratio(positives, counts.images),
                "sensitivity": ratio(counts.true_positive, positives) if positives and not detector.synthetic else None,
                "specificity": ratio(counts.true_negative, counts.images - positives)
                if counts.images > positives and not detector.synthetic
                else None,
                "synthetic": UNKNOWN_ERRORS if detector.synthetic else "",
                "files": names,
                "max_bytes": MAX_DROP,
                "heat": heat_map_sentences(detector),
                "agreement": readings.agreement(detector.version),
                "readings": readings.path.name,
            }
        )

    async def folder(request: Request) -> Response:
        number = request.path_params["number"]
        if not 0 <= number < len(files):
            return _refused("There is no such radiograph in the folder. Load the page again.", 404)
        path, key = files[number][0], f"folder {number}"
        if key in cache:
            return await answered(key, names[number], lambda: read_limited(path))
        try:
            async with turns.turn():
                return await answered(key, names[number], lambda: read_limited(path))
        except BusyError:
            return _busy()

    async def drop(request: Request) -> Response:
        name = _shown(request.query_params.get("name", ""))
        try:
            async with turns.turn():
                whole = await body_of(request, MAX_DROP)
                return await answered(f"drop {sha256_bytes(whole)}", name, lambda: whole)
        except BusyError:
            return _busy()
        except TooLargeError:
            sentence = f"{name} cannot be shown: it is larger than {MAX_DROP // 2**20} MiB, the limit of this page."
            return _refused(sentence, 413)
        except TimeoutError:
            return _refused(f"{name} did not arrive in time. Open it again.", 408)
        except ClientDisconnect:
            return _refused(f"{name} arrived incomplete. Open it again.")

    async def reading(request: Request) -> Response:
        try:
            body = json.loads(await body_of(request, MAX_READING))
            key, verdict = str(body["key"]), str(body["verdict"])
        except (ValueError, KeyError, TypeError, RecursionError, TooLargeError, TimeoutError, ClientDisconnect):
            return _refused("This is not a reading. Load the page again, then give your verdict.", 400)
        shown = [begun.result() for begun in cache.values() if _succeeded(begun)]
        answer = next((answer for answer in shown if answer["key"] == key), None)
        if answer is None:
            return _refused("This radiograph is no longer in memory. Open it again, then give your verdict.", 404)
        if answer["probability"] is None:
            return _refused("The detector gave no answer for this image, so there is nothing to agree with.", 400)
        yes, name = bool(answer["pneumothorax"]), _shown(str(body.get("name", "")))
        try:
            await run_in_threadpool(readings.add, name, key, detector.version, answer["probability"], yes, verdict)
        except PneumoError as error:
            return _refused(str(error), 400)
        return JSONResponse(readings.agreement(detector.version))

    routes = [
        Route("/", guarded(page)),
        Route("/api/about", guarded(about)),
        Route("/api/folder/{number:int}", guarded(folder)),
        Route("/api/drop", guarded(drop), methods=["POST"]),
        Route("/api/reading", guarded(reading), methods=["POST"]),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, port=port, keys=keys)])


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1 only; port 0 takes any free port.

    Raises:
        PneumoError: the port is in use or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen(128)  # already now: a request that comes before the server has started waits
    except OSError as error:
        listener.close()
        raise PneumoError(f"Port {port} cannot be used ({error.strerror}). Name another with --port.") from None
    return listener


def serve(
    page_detector: PageDetector,
    files: Files,
    readings: Readings,
    listener: socket.socket,
    started: Callable[[str, str], None],
    failed: Failed,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        page_detector: as for :func:`make_app`, like ``files`` and ``readings``.
        files: radiographs of the folder.
        readings: keeps the verdicts.
        listener: from :func:`listen`.
        started: called with the page's address to print, and with the one to open a browser at (see :class:`Keys`).
        failed: as for :func:`make_app`.
    """
    port, keys = listener.getsockname()[1], Keys()
    app = make_app(page_detector, files, readings, port, keys, failed)
    server = make_server(app, page_detector)
    try:
        address = f"http://{ADDRESS}:{port}/?token="
        started(address + keys.printed, address + keys.once)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has then ended properly
            asyncio.run(server.serve(sockets=[listener]))
    finally:
        page_detector.decoder.close()


class _Server(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, page_detector: PageDetector) -> None:
        super().__init__(settings)
        self.page_detector = page_detector

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.page_detector.decoder.close()  # uvicorn waits for open requests, and a decoder may take a minute
        await super().shutdown(sockets)


def make_server(app: Starlette, page_detector: PageDetector) -> uvicorn.Server:
    """uvicorn that keeps to the limits, prints nothing, and does not name itself in its responses."""
    settings = uvicorn.Config(
        app,
        http=LimitedProtocol,
        log_level="critical",  # errors are told by make_app's ``failed``, without a traceback
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        **SETTINGS,
    )
    return _Server(settings, page_detector)


def _succeeded(begun: PageAnswer) -> bool:
    return begun.done() and not begun.cancelled() and begun.exception() is None


def _shown(name: str) -> str:
    """A file's name as the page shows it: on one line, without letters that cannot be printed, cut to 120."""
    return one_line(name.encode("utf-8", "replace").decode()) or "The file"


def _with_full_stop(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _busy() -> JSONResponse:
    return JSONResponse({"error": BUSY}, 503, {"Retry-After": str(RETRY_SECONDS)})


def _refused(sentence: str, status: int = 422) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)
