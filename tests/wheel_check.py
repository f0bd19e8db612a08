"""Builds the wheel and the source package, installs the wheel outside the checkout, and uses it as a stranger would.

``wheel_check.py --out FOLDER [--pythons 3.11,3.12,3.13] [--train 3.11] [--borrow .venv] [--uv .venv-tools/bin/uv]``;
``make wheel-check``. For each Python a new environment gets the wheel without TensorFlow: help of every command,
experiments by name, phantoms, a prepared folder, a board of bare csv files, and a refusal of ``train`` that names the
extra. Those of ``--train`` then get TensorFlow: the smallest classifier is trained by its name, predicts, is compared,
and answers from Python. Versions are those of constraints.txt. With ``--borrow``, TensorFlow and what comes with it are
not installed again but read from that environment, which saves 2 GB of disk. With ``--uv``, uv installs what the wheel
needs, and pip only the wheel, for which it must find nothing missing: the same, faster. Prints a line for each step
with its seconds; ends with 1 at the first thing that does not hold.

Nothing of the checkout is on any path there: the environment's Python runs with -I, in an empty folder.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NOT_FOR_USERS = (".gitignore", ".github/")
"""Files of the checkout that the source package leaves out."""

INSTALLED = """
import importlib.metadata, importlib.util, pathlib, sys
import keras_pneumo
from keras_pneumo.cli import COMMANDS, app
from keras_pneumo.config import known_experiments, read_experiment
import typer.main

checkout = sys.argv[1]
assert not keras_pneumo.__file__.startswith(checkout), keras_pneumo.__file__
assert not [path for path in sys.path if path.startswith(checkout + "/keras_pneumo") or path == checkout], sys.path
assert keras_pneumo.__version__ == importlib.metadata.version("keras-pneumo")
assert (pathlib.Path(keras_pneumo.__file__).parent / "py.typed").is_file()
names = sys.argv[2].split(",")
known = known_experiments()
assert sorted(known) == sorted(names), (sorted(known), names)
for name in names:
    assert read_experiment(pathlib.Path(name)).name == name
    assert known[name].file.is_relative_to(sys.prefix), known[name].file
commands = typer.main.get_command(app).commands
for name in COMMANDS:
    context = typer.Context(commands[name], info_name=name)
    text = commands[name].get_help(context) or ""
assert "tensorflow" not in sys.modules
assert not any(importlib.util.find_spec(name) for name in ("tensorflow", "keras", "torch"))
"""
"""What is checked in one process of an environment: arguments are the checkout and the experiments' names."""

SUBMISSION = """
import sys
import pandas as pd

split = pd.read_csv(sys.argv[1] + "/split.csv")
test = set(split.loc[split["subset"] == "test", "image_id"])
masks = pd.read_csv(sys.argv[2] + "/train-rle.csv", skipinitialspace=True)
masks[masks["ImageId"].isin(test)].to_csv(sys.argv[3], index=False)
"""
"""Writes a bare csv of right masks for the test images of a prepared folder."""

FROM_PYTHON = """
import pathlib, sys
import keras_pneumo as kp

run = kp.load_run(sys.argv[1])
file = next(pathlib.Path(sys.argv[2]).rglob("*.dcm"))
answers = run.predict(file)
assert 0 < float(answers["probability"].iloc[0]) < 1, answers
assert run.heat_map(file).shape == (1024, 1024)
"""
"""A run's answer and heat map from Python."""


class CheckError(Exception):
    """Something that must hold does not."""


def require(holds: object, message: str) -> None:
    """End the check with ``message`` unless ``holds``."""
    if not holds:
        raise CheckError(message)


def clean_environment(cache: Path) -> dict[str, str]:
    """Return an environment in which nothing points at the checkout, and the program's cache is ``cache``."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KERAS", "VIRTUAL_ENV"))
    }
    return kept | {"KERAS_PNEUMO_CACHE": str(cache), "COLUMNS": "200", "NO_COLOR": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def find_python(version: str) -> Path | None:
    """Return a Python of this version, such as "3.12": this one, or one on the path, or one of pyenv's; or None.

    A file of that name need not run: pyenv's shims do not where their version is not chosen.
    """
    candidates = [sys.executable] if version == ".".join(map(str, sys.version_info[:2])) else []
    candidates.append(shutil.which(f"python{version}") or "")
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(map(str, home.glob(f"versions/{version}.*/bin/python{version}")), reverse=True)
    for candidate in candidates:
        command = [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        if candidate and subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == version:
            return Path(candidate)
    return None


def tracked_files() -> list[str]:
    """Return the checkout's files, by git: those that are tracked, and those that would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (REPOSITORY / name).is_file() and not (REPOSITORY / name).is_symlink()]


def build_packages(out: Path) -> Path:
    """Build the source package, and the wheel from it, of a clean copy of the checkout; return the wheel.

    Raises:
        CheckError: a file of the checkout is missing, or the wheel has one too many.
    """
    files = tracked_files()
    for name in files:
        (out / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, out / "source" / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out / "dist", out / "source"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(out / "cache"), check=False)
    require(done.returncode == 0, f"The packages could not be built:\n{(done.stdout + done.stderr)[-3000:]}")
    (wheel,), (source,) = (out / "dist").glob("*.whl"), (out / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in files if name not in packed and not name.startswith(NOT_FOR_USERS)]
    require(not missing, f"The source package lacks {', '.join(missing)}. Add them to MANIFEST.in.")
    installed = {name for name in files if name.startswith("keras_pneumo/")}
    installed |= {name for name in files if re.fullmatch(r"experiments/\w+\.py", name)}
    with zipfile.ZipFile(wheel) as archive:
        packed = {re.sub(r"^[^/]*\.data/data/share/keras_pneumo/", "", name) for name in archive.namelist()}
    packed = {name for name in packed if ".dist-info/" not in name}
    require(not installed - packed, f"The wheel lacks {', '.join(sorted(installed - packed))}. See setup.cfg.")
    require(not packed - installed, f"The wheel has {', '.join(sorted(packed - installed))} too many. See setup.cfg.")
    return wheel


class Environment:
    """A new environment of one Python, and an empty folder outside the checkout in which its commands run."""

    def __init__(self, python: Path, version: str, out: Path, uv: Path | None) -> None:
        self.version, self.folder, self.started = version, out / version, time.monotonic()
        self.work, self.uv = self.folder / "work", uv
        self.work.mkdir(parents=True)
        self.bin = self.folder / "venv/bin"
        self.environment = clean_environment(self.folder / "cache") | {"PATH": f"{self.bin}:/usr/bin:/bin"}
        subprocess.run([python, "-m", "venv", self.folder / "venv"], check=True, env=clean_environment(out))

    def say(self, text: str) -> None:
        """Print a step that is done."""
        print(f"Python {self.version}: {text} ({time.monotonic() - self.started:.0f} s)", flush=True)

    def run(self, *command: object, expect: int = 0, within: int = 900) -> str:
        """Run a command of the environment in the empty folder; return what it printed."""
        words = [str(self.bin / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(
            words, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=within, check=False
        )
        printed = done.stdout + done.stderr
        shown = " ".join(words)
        require(
            done.returncode == expect,
            f"Python {self.version}: {shown[:300]}\nended with {done.returncode}, not {expect}:\n{printed[-3000:]}",
        )
        return printed

    def python(self, code: str, *arguments: object) -> str:
        """Run Python code, apart from the user's own packages and from any PYTHONPATH."""
        return self.run("python", "-I", "-c", code, *arguments)

    def pip(self, *requirements: object) -> None:
        """Install requirements at the versions of constraints.txt, which is not asked for hashes here."""
        pins = self.folder / "pins.txt"
        text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
        pins.write_text(re.sub(r" \\$|^ *--hash.*\n", "", text, flags=re.MULTILINE), encoding="utf-8")
        options = ("--quiet", "-c", pins, *requirements)
        if self.uv is not None:
            # All but the wheel itself: that is pip's, which then looks for what it requires.
            self.run(self.uv, "pip", "install", "--python", self.bin / "python", *options)
            self.run(self.uv, "pip", "uninstall", "--quiet", "--python", self.bin / "python", "keras-pneumo")
        self.run("python", "-m", "pip", "install", "--progress-bar", "off", *options)

    def borrow(self, lender: Path) -> None:
        """Let packages that this environment lacks be read from another environment of the same Python.

        Its own packages, the wheel among them, come first on the path; an editable keras_pneumo of the lender is not
        seen, since Python reads no .pth file of a folder that a .pth file names.
        """
        name = f"lib/python{self.version}/site-packages"
        packages = lender.resolve() / name
        require(packages.is_dir(), f"{lender} is not an environment of Python {self.version}: it has no {name}.")
        (self.folder / "venv" / name / "borrowed.pth").write_text(f"{packages}\n", encoding="utf-8")


def check_light(environment: Environment, wheel: Path) -> None:
    """Check all that needs no TensorFlow."""
    environment.pip(wheel)
    environment.say("installed without TensorFlow")
    experiments = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.py"))
    environment.python(INSTALLED, REPOSITORY, ",".join(experiments))
    run, work = environment.run, environment.work
    require("train" in run("keras-pneumo", "--help"), "The help lists no commands.")
    listed = run("keras-pneumo", "experiments")
    require(all(f"{name}: " in listed for name in experiments), f"keras-pneumo experiments lists only:\n{listed}")
    doctor = run("keras-pneumo", "doctor")
    named = "TensorFlow and Keras are not installed" in doctor and "pip install 'keras-pneumo[train]'" in doctor
    require(named, f"doctor does not name what is missing and its extra:\n{doctor}")
    run("keras-pneumo", "phantom", "phantoms", "--images", 60, "--size-scale", 6)
    run("keras-pneumo", "prepare", "phantoms", "--out", "prepared", "--size", 64)
    environment.python(SUBMISSION, work / "prepared", work / "phantoms", work / "team.csv")
    board = run("keras-pneumo", "compare", "team.csv", "--truth", "prepared", "--out", "board", "--resamples", 200)
    require(
        re.search(r"team .*1\.000", board),
        f"The board lacks the submission of right masks, or their Dice of 1:\n{board}",
    )
    require((work / "board/report.html").is_file(), "compare wrote no report.html")
    refusal = run("keras-pneumo", "train", "smallest_classifier", "--data", "prepared", "--out", "no", expect=2)
    named = "pip install 'keras-pneumo[train]'" in refusal and "Traceback" not in refusal
    require(named, f"train does not name the extra in a sentence:\n{refusal}")
    environment.say("phantom, prepare, compare, experiments and every help text are right")


def check_training(environment: Environment, wheel: Path, lender: Path | None) -> None:
    """Check the whole chain with TensorFlow, in an environment where ``check_light`` has passed."""
    if lender is not None:
        environment.borrow(lender)
        environment.uv = None  # pip sees what is borrowed, and that it satisfies the wheel's requirements; uv does not
    environment.pip(f"{wheel}[train]")
    environment.say("TensorFlow borrowed" if lender else "TensorFlow installed")
    run, work = environment.run, environment.work
    run("keras-pneumo", "train", "smallest_classifier", "--data", "phantoms", "--prepared", "prepared", "--out", "run")
    require((work / "run/report.html").is_file(), "train wrote no report.html")
    environment.say("the smallest classifier was trained by its name")
    run("keras-pneumo", "predict", "run", "--data", "phantoms", "--out", "answers")
    board = run("keras-pneumo", "compare", "run", "--truth", "prepared", "--out", "board-run", "--resamples", 200)
    require("smallest_classifier" in board, f"The board lacks the run:\n{board}")
    environment.python(FROM_PYTHON, work / "run", work / "phantoms")
    # Scripts are not borrowed.
    run(*(("python", "-m", "tensorboard.main") if lender else ("tensorboard",)), "--version")
    environment.say("predict, compare, TensorBoard and the front door are right")


def check_python(
    version: str, python: Path, wheel: Path, out: Path, train: bool, lender: Path | None, uv: Path | None
) -> None:
    """Check one Python, and take its environment away again."""
    environment = Environment(python, version, out, uv)
    check_light(environment, wheel)
    if train:
        check_training(environment, wheel, lender)
    shutil.rmtree(environment.folder)


def main() -> int:
    """Build, then check each Python, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder outside the checkout")
    parser.add_argument("--pythons", default="", help="versions, such as 3.11,3.12; default: all that are found")
    parser.add_argument("--train", default="", help="the versions that also get TensorFlow; default: none")
    parser.add_argument("--borrow", type=Path, help="an environment from which those read TensorFlow")
    parser.add_argument("--uv", type=Path, help="installs what the wheel needs; default: pip does")
    arguments = parser.parse_args()
    uv = arguments.uv.absolute() if arguments.uv and arguments.uv.is_file() else None
    out = arguments.out.resolve()
    require(not out.is_relative_to(REPOSITORY), f"{out} is in the checkout. Choose a folder outside it.")
    out.mkdir(parents=True, exist_ok=True)
    require(not any(out.iterdir()), f"{out} is not empty. Choose a new folder.")
    versions = [version for version in arguments.pythons.split(",") if version]
    found = {version: find_python(version) for version in versions or ("3.11", "3.12", "3.13")}
    lacking = [version for version, python in found.items() if python is None]
    require(not (versions and lacking), f"There is no Python {', '.join(lacking)}. Install it, or leave it out.")
    for version in lacking:
        print(f"Python {version}: not found, so it is not checked")
    wheel = build_packages(out)
    print(f"{wheel.name}: every file is in it")
    train = arguments.train.split(",")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        checks = [
            pool.submit(check_python, version, python, wheel, out, version in train, arguments.borrow, uv)
            for version, python in found.items()
            if python is not None
        ]
        for check in checks:
            check.result()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as failed:
        print(failed, file=sys.stderr)
        sys.exit(1)
