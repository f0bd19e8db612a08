"""The page's server: static files, answers for a folder's radiographs and for dropped ones, and readings.

Every fault of a file becomes ``{"error": sentence}``, and the page goes on. Serving is Starlette's and uvicorn's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import OrderedDict
from collections.abc import Callable
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
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.metrics import ratio
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.viewer.guard import Guard, Keys
from keras_pneumo.viewer.reader import Reader, heat_sentence
from keras_pneumo.viewer.readings import Readings

ADDRESS = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
MAX_DROP = 64 * 2**20
"""Bytes of the largest file that the page takes: twice an uncompressed radiograph of 16 megapixels."""

KEPT = 8
"""Answers kept in memory, so that next and previous are at once."""

Files = list[tuple[Path, str]]
Reading = asyncio.Future[dict[str, Any]]
"""Of one radiograph; it is kept from its beginning, as one that is read ahead may be asked for before its end."""


def make_app(reader: Reader, files: Files, readings: Readings, port: int, keys: Keys) -> Starlette:
    """The application, for a server at ``port``.

    Args:
        reader: answers for the bytes of a file.
        files: radiographs of the folder that the page pages through, with their names; may be empty.
        readings: where verdicts go.
        port: of the address that the page is opened at.
        keys: what opens it.
    """
    detector = reader.detector
    kept: OrderedDict[str, Reading] = OrderedDict()

    def begin(place: str, name: str, load: Callable[[], bytes]) -> None:
        def forget_failure(done: Reading) -> None:
            if kept.get(place) is done and not _succeeded(done):
                del kept[place]

        kept[place] = asyncio.ensure_future(run_in_threadpool(lambda: reader.read(load(), name)))
        kept[place].add_done_callback(forget_failure)

    async def answered(place: str, name: str, load: Callable[[], bytes]) -> Response:
        if place not in kept:
            begin(place, name, load)
        begun = kept[place]
        try:
            found = await asyncio.shield(begun)  # it goes on for others if this request ends
        except UnreadableImage as error:
            return _refused(f"{name} cannot be shown: {_ended(str(error))}")
        except PneumoError as error:
            return _refused(str(error), 500)
        except Exception as error:  # whatever a file does, the page goes on
            return _refused(f"{name} cannot be shown: the detector failed on it ({type(error).__name__}).", 500)
        kept[place] = begun
        kept.move_to_end(place)
        while len(kept) > KEPT:
            kept.popitem(last=False)
        return JSONResponse({**found, "name": name, "verdict": readings.verdicts(detector.version).get(found["key"])})

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
                "sensitivity": ratio(counts.true_positive, positives) if positives else None,
                "specificity": ratio(counts.true_negative, counts.images - positives)
                if counts.images > positives
                else None,
                "files": [name for _, name in files],
                "max_bytes": MAX_DROP,
                "heat": heat_sentence(detector),
                "agreement": readings.agreement(detector.version),
                "readings": readings.path.name,
            }
        )

    async def folder(request: Request) -> Response:
        number = request.path_params["number"]
        if not 0 <= number < len(files):
            return _refused("There is no such radiograph in the folder.", 404)
        path, name = files[number]
        return await answered(f"folder {number}", name, lambda: read_limited(path))

    async def drop(request: Request) -> Response:
        name = _plain(request.query_params.get("name", ""))
        too_large = f"{name} cannot be shown: it is larger than the {MAX_DROP // 2**20} MiB that the page takes."
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_DROP:
            return _refused(too_large, 413)
        data = bytearray()
        try:
            async for piece in request.stream():
                data += piece
                if len(data) > MAX_DROP:
                    return _refused(too_large, 413)
        except ClientDisconnect:
            return _refused(f"{name} did not arrive whole.")
        whole = bytes(data)
        return await answered(f"drop {sha256_bytes(whole)}", name, lambda: whole)

    async def reading(request: Request) -> Response:
        try:
            given = json.loads(await _small_body(request))
            values = (str(given["key"]), str(given["verdict"]))
        except (ValueError, KeyError, TypeError):
            return _refused("This is no reading.", 400)
        shown = [one.result() for one in kept.values() if _succeeded(one)]
        found = next((one for one in shown if one["key"] == values[0]), None)
        if found is None:
            return _refused("This radiograph was not shown lately; open it again to say what you think of it.", 404)
        yes, name = bool(found["pneumothorax"]), _plain(str(given.get("name", "")))
        try:
            await run_in_threadpool(
                readings.add, name, values[0], detector.version, found["probability"], yes, values[1]
            )
        except PneumoError as error:
            return _refused(str(error), 400)
        return JSONResponse(readings.agreement(detector.version))

    routes = [
        Route("/", page),
        Route("/api/about", about),
        Route("/api/folder/{number:int}", folder),
        Route("/api/drop", drop, methods=["POST"]),
        Route("/api/reading", reading, methods=["POST"]),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, port=port, keys=keys)])


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1, and on no other address of this machine; port 0 takes any free one.

    Raises:
        PneumoError: the port is taken or not allowed.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
        found.listen(128)  # already now: who comes before the server has started waits
    except OSError as error:
        found.close()
        raise PneumoError(f"Port {port} cannot be used ({error.strerror}). Name another with --port.") from None
    return found


def serve(
    reader: Reader, files: Files, readings: Readings, place: socket.socket, started: Callable[[str, str], None]
) -> None:
    """Serve the page until it is interrupted.

    Args:
        reader: as for :func:`make_app`, like ``files`` and ``readings``.
        files: radiographs to page through.
        readings: where verdicts go.
        place: from :func:`listen`.
        started: told the page's address as it is shown, and as a browser is sent there (see :class:`Keys`).
    """
    port, keys = place.getsockname()[1], Keys()
    app = make_app(reader, files, readings, port, keys)
    server = make_server(app, reader)
    try:
        address = f"http://{ADDRESS}:{port}/?token="
        started(address + keys.printed, address + keys.once)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has then ended in good order
            asyncio.run(server.serve(sockets=[place]))
    finally:
        reader.decoder.close()


class _Server(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, reader: Reader) -> None:
        super().__init__(settings)
        self.reader = reader

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.reader.decoder.close()  # what is under way is waited for, and a decoder may take a minute
        await super().shutdown(sockets)


def make_server(app: Starlette, reader: Reader) -> uvicorn.Server:
    """uvicorn with nothing written to the screen and no word about itself in its answers."""
    settings = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    return _Server(settings, reader)


def _succeeded(reading: Reading) -> bool:
    return reading.done() and not reading.cancelled() and reading.exception() is None


async def _small_body(request: Request, most: int = 10_000) -> bytes:
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > most:
            raise ValueError("too long")
    return data


def _plain(name: str) -> str:
    """A file name as it may be shown: what can be seen of it, and not too long."""
    return "".join(one for one in name if one.isprintable())[:120] or "The file"


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _refused(sentence: str, status: int = 422) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)
