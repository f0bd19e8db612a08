"""A Python that has imported TensorFlow, or PyTorch, before it is asked for anything: each start is seconds shorter.

Importing TensorFlow and Keras takes five seconds of a processor, PyTorch and its networks as long, and tests start
hundreds of processes. ``warm()`` gives the words that stand for ``python`` in a command line. They start a small
process, which hands its arguments, folder, environment and files to a server and ends as the server's fork has ended.
The fork is a process of its own, in which only packages of others were imported before; our code is imported anew.
Signals to the small process reach the fork, and where the former is killed, so is the latter.

Not for what a test measures or proves of a process itself: its start, its memory, its number, what is imported, or a
random order of hashes.
"""

import atexit
import contextlib
import functools
import itertools
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

SEEN_AT_IMPORT = (
    *("TF_ENABLE", "TF_XLA", "KERAS_BACKEND", "XLA_", "CUDA_", "OMP_", "OPENBLAS_", "MKL_", "JAX_"),
    *("LD_", "LC_", "LANG", "MPL", "PYTHONHASHSEED", "PYTHONIO", "PYTHONUTF8", "PYTHONWARNINGS", "PYTHONUNBUFFERED"),
)
"""Beginnings of the names of variables that are read when Python starts, or while packages are imported."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
STARTS_WITHIN = 120
TENSORFLOW = ("tensorflow", "keras", "pandas", "scipy.stats", "sklearn.isotonic", "matplotlib.figure")
PYTORCH = ("torch", "torchvision", "segmentation_models_pytorch", "timm", "pandas")


def warm(python=sys.executable, modules=TENSORFLOW):
    """The words that stand for this Python in a command line; its server lives as long as this process."""
    if not hasattr(os, "pidfd_open"):
        return [str(python)]
    folder, _ = _server(str(python), modules)
    return [sys.executable, "-IS", __file__, "ask", folder]


@functools.cache
def _server(python, modules):
    """The folder in which the server of this Python listens, and its process, which this cache keeps."""
    folder = tempfile.mkdtemp(prefix="warm")
    process = subprocess.Popen(
        [python, __file__, "serve", folder, *modules],
        stdin=subprocess.PIPE,  # it ends when this does: with this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    return folder, process


# ---------------------------------------------------------------- the small process


def ask(folder, words):
    """Let the server run ``python WORDS``; end as that ends."""
    connection = _connect(folder)
    about = json.loads(Path(folder, "about.json").read_text())
    if about["variables"] != _variables():
        os.execv(about["python"], [about["python"], *words])
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until it is known to whom they go
    with tempfile.TemporaryFile() as task:
        task.write(json.dumps({"words": words, "folder": str(Path.cwd()), "variables": dict(os.environ)}).encode())
        task.flush()
        socket.send_fds(connection, [b"t"], [task.fileno(), 0, 1, 2])
    number = int(connection.recv(32))
    for each in PASSED_ON:
        signal.signal(each, lambda given, _: os.kill(number, given))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    code = int(connection.recv(32) or b"70")
    if code < 0:
        with contextlib.suppress(OSError):  # of SIGKILL, it cannot be set
            signal.signal(-code, signal.SIG_DFL)
        signal.raise_signal(-code)
    sys.exit(code)


def _connect(folder):
    connection = socket.socket(socket.AF_UNIX)
    for _ in range(STARTS_WITHIN * 50):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(f"{folder}/socket")
            return connection
        select.select([], [], [], 0.02)
    raise TimeoutError(f"The server in {folder} did not start within {STARTS_WITHIN} s.")


def _variables():
    return {name: value for name, value in os.environ.items() if name.startswith(SEEN_AT_IMPORT)}


# ---------------------------------------------------------------- the server


def serve(folder, modules):
    """Import the modules, then fork for each request; returns in a fork only, with what it is asked for."""
    variables = _variables()
    if "keras" in modules:
        from keras_pneumo.quiet import import_tensorflow

        import_tensorflow()
        for name in [name for name in sys.modules if name.partition(".")[0] == "keras_pneumo"]:
            del sys.modules[name]
    for name in modules:
        __import__(name)
    about = {"python": sys.executable, "variables": variables}
    Path(folder, "about.json").write_text(json.dumps(about))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(32)
    running = {}  # of each fork: its number, the file that says that it ended, and who asked for it
    while True:
        ready = select.select([0, listener, *itertools.chain.from_iterable(running.values())], [], [])[0]
        for number, (ended, asker) in list(running.items()):
            if ended in ready:
                with contextlib.suppress(OSError):
                    asker.send(str(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])).encode())
            elif asker in ready:  # it was killed
                _kill(number)
                os.waitpid(number, 0)
            else:
                continue
            del running[number]
            os.close(ended)
            asker.close()
        if 0 in ready:
            for number in running:
                _kill(number)
            shutil.rmtree(folder)
            sys.exit()
        if listener in ready:
            asker = listener.accept()[0]
            _, handles, *_ = socket.recv_fds(asker, 1, 4)
            if not handles:  # it starts Python itself
                asker.close()
                continue
            with os.fdopen(handles[0], "rb") as file:
                file.seek(0)
                task = json.load(file)
            number = os.fork()
            if number == 0:
                os.setsid()
                for each in (asker, listener, *(asker for _, asker in running.values())):
                    each.close()
                for ended, _ in running.values():
                    os.close(ended)
                for place, handle in enumerate(handles[1:]):
                    os.dup2(handle, place)
                    os.close(handle)
                return task
            for handle in handles[1:]:
                os.close(handle)
            asker.send(str(number).encode())
            running[number] = os.pidfd_open(number), asker


def _kill(group):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def become(task):
    """Be the process that ``python WORDS`` is."""
    os.chdir(task["folder"])
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ.clear()
    os.environ.update(task["variables"])
    base = [path for path in sys.path[1:] if path not in before]
    now = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    first, *rest = task["words"]
    if first in ("-m", "-c"):
        what, *rest = rest
        sys.argv, sys.path = [first, *rest], ["" if first == "-c" else str(Path.cwd()), *now, *base]
        sys.modules["__main__"] = types.ModuleType("__main__")
        if first == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path = [first, *rest], [str(Path(first).resolve().parent), *now, *base]
        runpy.run_path(first, run_name="__main__")


def end(code):
    """End as Python does, but without taking its modules apart: a fork would first copy each of their pages."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(sys.argv[2], sys.argv[3:])
    wanted = serve(sys.argv[2], sys.argv[3:])
    try:
        become(wanted)
    except SystemExit as done:
        if isinstance(done.code, str):
            print(done.code, file=sys.stderr)
        end(done.code if isinstance(done.code, int) else int(done.code is not None))
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)  # to this thread, which so ends here; TensorFlow has others
    except BaseException:
        traceback.print_exc()
        end(1)
    end(0)
