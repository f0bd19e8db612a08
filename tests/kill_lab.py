"""Kills commands at random moments, runs the same line again, and compares with what an unbroken run has left.

``kill_lab.py --kills 30 --out FOLDER [--only train,detect] [--seed 0]``; ``make kills N=30``. Each kill is a SIGKILL of
the command's whole process group. Half come at a random time of the command's life, half at a random one of its changes
to the disk, since those take milliseconds of it. Before the same line is started again, what is there must be complete
or show that it is not. A kill that came after the result was complete counts for nothing and is drawn anew.

TensorFlow is imported once, here, and the commands are forks, so that each takes seconds.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import cv2
import h5py
import numpy as np
import pandas as pd
from safetensors.numpy import load_file

import keras_pneumo.cli
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, write_submission
from keras_pneumo.storage.files import is_leftover
from keras_pneumo.storage.interruption import SIGNALS

REPOSITORY = Path(__file__).parents[1]
COMMANDS = ("prepare", "train", "predict", "join", "detect", "compare", "explain")
LONGEST = 300
"""Seconds that a command may take."""

SMALLER = ["--set", "encoder=resnet18", "--set", "global_batch_size=8", "--set", "flip_averaging=false"]
EACH_STEP = ["--checkpoint-every", "1steps"]
CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")
"""What Python reports (sys.addaudithook) of a process that changes the disk, beside the opening of files to write."""

TIMES = ("seconds", "images_per_second", "data_seconds", "memory_gb", "training_seconds", "training_hours")
VOLATILE = {*TIMES, "elapsed", "sha256", "weights_sha256", "state.json", "files", "command"}
"""Values of tables and records that differ between two unbroken runs too, and hashes of files that hold such values."""

COMPLETE = {"compare": "report.html", "explain": "explain.json", "join": "detector.json", "predict": "submission.json"}
"""The file whose presence says that a result is complete, where results appear at once."""


class Command:
    """One line in a process group of its own, forked from this process."""

    running: ClassVar[list] = []
    """Those that have not ended: a group of its own does not end with this process."""

    def __init__(self, line, log, end_at=None):
        """``end_at``: the number of the change to the disk at which the process group kills itself."""
        sys.stdout.flush()
        reader, writer = os.pipe()
        self.log = log
        self.number = os.fork()
        if self.number == 0:
            code = 99
            try:
                os.setsid()
                os.close(reader)
                with log.open("ab") as stream:
                    for handle in (1, 2):
                        os.dup2(stream.fileno(), handle)
                sys.addaudithook(counting(writer, end_at))
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                code = run_line(line)
            finally:
                os._exit(code)
        os.close(writer)
        self.reader = reader
        self.code = None
        self.running.append(self)

    def wait(self, seconds):
        """Waits until the command has ended, but no longer than so many seconds; whether it has."""
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            number, status = os.waitpid(self.number, os.WNOHANG)
            if number:
                self.code = os.waitstatus_to_exitcode(status)
                self.running.remove(self)
            else:
                time.sleep(0.005)
        return self.code is not None

    def kill(self):
        """Kills the group, and waits until no process of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, signal.SIGKILL)
        self.wait(LONGEST)
        until = time.monotonic() + 30
        while is_alive(self.number):
            assert time.monotonic() < until, f"processes of {self.number} are left"
            time.sleep(0.01)

    def changes(self):
        """How often an ended command has changed the disk."""
        with os.fdopen(self.reader, "rb") as stream:
            return len(stream.read())


def is_alive(group):
    """Whether a process group has a member that is no zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, owner, *_ = path.read_text().rpartition(")")[2].split()
            if int(owner) == group and state != "Z":
                return True
    return False


def counting(writer, end_at):
    """An audit hook that writes a byte for each change to the disk, and kills the process group at the last one."""
    count = 0
    main = os.getpid()

    def hook(event, arguments):
        nonlocal count
        changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT)
        if changes and os.getpid() == main:
            count += 1
            with contextlib.suppress(OSError):
                os.write(writer, b".")
            if count == end_at:
                os.killpg(0, signal.SIGKILL)

    return hook


def run_line(line):
    """Runs a line of the command line in this process; its exit code."""
    sys.argv = ["keras-pneumo", *line]
    try:
        keras_pneumo.cli.main(list(line))
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def contents(folder):
    """Each file of a result by its name, as its format says: tables, records, arrays and pixels; text as it is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != ".lock":
            try:
                found[name] = content(path)
            except Exception:  # half written, by a process that was killed
                found[name] = path.read_bytes()
    return found


def content(path):
    match path.suffix:
        case ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.stat().st_size > 1 else pd.DataFrame()
            return table.drop(columns=[name for name in TIMES if name in table]).to_csv(index=False)
        case ".json":
            return without_times(json.loads(path.read_text()))
        case ".png":
            return None if path.name == "curves.png" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        case ".safetensors":
            return load_file(path)
        case ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        case ".npy":
            return np.load(path)
        case ".h5":
            return arrays_of(path)
        case ".html":
            return None  # it holds times
        case _:
            return None if path.name.startswith("events.out") else path.read_bytes()


def arrays_of(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in VOLATILE}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def equal(first, second):
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return first == second or (first != first and second != second)
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second, equal_nan=np.asarray(first).dtype.kind == "f")
    return first == second


def differences(first, second):
    """The names of the files in which two results differ."""
    names = {re.sub(r"events\.out.*", "events", name) for name in (*first, *second)} - {"events"}
    names = {name for name in names if not name.rpartition("/")[2].startswith("events")}
    return sorted(name for name in names if not (name in first and name in second and equal(first[name], second[name])))


class Lab:
    """The folders of a run of this tool, and the lines that it kills."""

    def __init__(self, folder, seed):
        self.folder = folder
        self.random = random.Random(seed)
        self.log = folder / "log.txt"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key").write_text("5a" * 32 + "\n")  # of pseudonyms: two preparations are equal with one key only

    def done(self, *line):
        """Runs a line to its end; its seconds and how often it changed the disk."""
        began = time.monotonic()
        command = Command([str(word) for word in line], self.log)
        assert command.wait(LONGEST), f"{line} takes too long"
        assert command.code in (0, 1), f"{line} ended with {command.code}: {self.log.read_text()[-3000:]}"
        seconds = time.monotonic() - began
        return seconds, command.changes()

    def prepare(self, commands):
        """Makes what these commands need, where an earlier call has not: phantoms, runs, a detector, submissions."""
        here = self.folder
        needed = [(here / "phantoms", ["phantom", here / "phantoms", "--images", 40, "--size-scale", 6, "--seed", 3])]
        prepared = here / "prepared"
        if set(commands) - {"prepare"}:
            needed.append((prepared, ["prepare", here / "phantoms", "--out", prepared, "--size", 64]))
        for kind in ("classifier", "segmenter"):
            if set(commands) & (
                {"predict", "explain", "join", "detect"} if kind == "classifier" else {"join", "detect"}
            ):
                experiment, run = REPOSITORY / f"experiments/smallest_{kind}.py", here / "runs" / kind
                needed.append((run, ["train", experiment, "--data", prepared, "--out", run, *SMALLER]))
        if "detect" in commands:
            needed.append((here / "detector", self.line("join", here / "detector")))
        few = here / "few"
        for folder, line in needed:
            if not (folder / "made.txt").exists():
                shutil.rmtree(folder, ignore_errors=True)
                self.done(*line)
                (folder / "made.txt").write_text(" ".join(map(str, line)))
        if "detect" in commands and not few.exists():
            few.mkdir()
            for path in sorted((here / "phantoms").rglob("*.dcm"))[:14]:
                shutil.copy(path, few)
            (few / "broken.dcm").write_bytes(b"no radiograph")
        truth = pd.read_csv(prepared / "truth.csv") if "compare" in commands else pd.DataFrame()
        for number in range(3 * ("compare" in commands)):
            names = truth.loc[truth["subset"] == "test", ["image_id"]]
            table = names.assign(probability=np.random.default_rng(number).random(len(names)))
            info = SubmissionInfo(team=f"Team {number}", task="classification", threshold=0.5)
            write_submission(here / f"teams/{number}", info, table)

    def line(self, command, out):
        here = self.folder
        classifier = here / "runs/classifier"
        smallest = REPOSITORY / "experiments/smallest_classifier.py"
        lines = {
            "prepare": [
                "prepare",
                here / "phantoms",
                "--out",
                out,
                "--size",
                64,
                "--size",
                96,
                "--pseudonym-key",
                here / "key",
            ],
            "train": ["train", smallest, "--data", here / "prepared", "--out", out, *EACH_STEP, *SMALLER],
            "predict": ["predict", classifier, "--data", here / "prepared", "--out", out],
            "join": [
                "join",
                classifier,
                *("--segmenter", here / "runs/segmenter", "--data", here / "prepared"),
                *("--resamples", 100, "--out", out),
            ],
            "detect": ["detect", here / "detector", here / "few", "--out", out],
            "compare": ["compare", here / "teams", "--truth", here / "prepared", "--resamples", 500, "--out", out],
            "explain": ["explain", classifier, here / "prepared", "--out", out],
        }
        return [str(word) for word in lines[command]]  # fmt: skip

    def begin(self, command, out):
        """What lies in the folder before the first start: an older board, where that is replaced."""
        if command == "compare":
            older = [str(word) if word != str(self.folder / "teams") else str(self.folder / "teams/0")
                     for word in self.line(command, out)]  # fmt: skip
            self.done(*older)

    def kills(self, command, count):
        """Kills a command so often, each time going on to the end; returns a line for a person."""
        whole = self.folder / "whole" / command
        shutil.rmtree(whole, ignore_errors=True)
        self.begin(command, whole)
        older = contents(whole) if whole.exists() else {}
        seconds, changes = self.done(*self.line(command, whole))
        expected = contents(whole)
        met, broken = Counter(), self.folder / "broken" / command
        while met["kills"] < count:
            shutil.rmtree(broken, ignore_errors=True)
            self.begin(command, broken)
            by_change = self.random.random() < 0.5
            end_at = self.random.randint(1, changes) if by_change else None
            moment = LONGEST if by_change else self.random.uniform(0, seconds)
            process = Command(self.line(command, broken), self.log, end_at)
            if process.wait(moment) and process.code != -signal.SIGKILL:
                assert process.code in (0, 1), self.log.read_text()[-3000:]
                process.kill()
                met["too late"] += 1
                continue
            process.kill()
            left = contents(broken) if broken.exists() else {}
            if not differences(left, expected):
                met["too late"] += 1
                continue
            self.check_unfinished(command, left, older, expected)
            met["kills"] += 1
            met["at a change of the disk"] += by_change
            met["with something begun"] += left != older
            self.done(*self.line(command, broken))
            different = differences(contents(broken), expected)
            assert not different, f"{command}, killed after {end_at or moment}: {different} differ in {broken}"
            beside = sorted(path.name for path in broken.parent.iterdir() if path.name not in COMMANDS)
            assert not beside, f"{command} left {beside}"
        shutil.rmtree(broken)
        words = ", ".join(f"{name}: {number}" for name, number in met.items())
        return (
            f"{command:8} {seconds:5.1f} s unbroken, {changes} changes of the disk; {words}; the same result each time"
        )

    @staticmethod
    def check_unfinished(command, left, older, expected):
        """What a killed command leaves is complete, old or new, or shows that it is not."""
        seen = {name: value for name, value in left.items() if not is_leftover(name.partition("/")[0])}
        complete = COMPLETE.get(command)
        if complete and complete in seen:
            assert not differences(seen, older) or not differences(seen, expected), f"{command}: a mixture"
        if command == "detect" and seen:
            assert "unfinished.jsonl" in seen, "answers that show no sign of being unfinished"
        if command == "prepare" and "manifest.json" in seen:
            assert not differences({k: v for k, v in seen.items() if k in expected}, expected), "a mixture"


def main(arguments=None):
    """Runs the tool; prints a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "Agg", "NO_COLOR": "1"})
    os.environ["KERAS_PNEUMO_CACHE"] = str(given.out.resolve() / "cache")
    import tensorflow  # noqa: F401 - before the forks

    import keras_pneumo.detector.fitting
    import keras_pneumo.training.trainer  # noqa: F401

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    lab = Lab(given.out.resolve(), given.seed)
    try:
        lab.prepare(given.only.split(","))
        print(f"set up in {time.monotonic() - began:.0f} s", flush=True)
        for command in given.only.split(","):
            print(lab.kills(command, given.kills), flush=True)
    finally:
        for command in list(Command.running):
            command.kill()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(f"all in {time.monotonic() - began:.0f} s, {cpu:.0f} s of the processors", flush=True)


if __name__ == "__main__":
    main()
