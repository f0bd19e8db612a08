"""Plants faults of one line and sees at which check of the ladder each is found; ``make planted-faults``.

``planted.py`` alone runs the whole table of ``planted_faults.py`` and writes ``planted_faults.json`` and
``planted_faults.md`` after each fault. ``planted.py FAULT -- train ...`` runs any command of ``keras-pneumo`` with that
fault in the code, its worker processes included.

How: the package (or the PyTorch team's folder) is copied, the line exchanged in the copy, and the copy runs in a
process of its own, so nothing else differs from what ``keras-pneumo parity`` runs. PyTorch's arrays do not change with
a fault on our side, nor ours with one on PyTorch's, so each side's right arrays are computed once. Our side's checks
are computed and compared one after the other, until one fails: that is the first one, which is what counts.

This process imports neither TensorFlow nor the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from planted_faults import FAULTS, UNPLANTED, Fault

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGE, TEAM = "keras_pneumo", "experiments/torch_team"
JSON, MARKDOWN, DONE = "planted_faults.json", "planted_faults.md", "done.json"
PLANS = {
    "classifier": {
        "encoder": "resnet18", "size": 32, "forward_batch": 8, "batches": [8, 4], "steps": 20,
        "networks": ["classifier"],
    },
    "unet": {
        "encoder": "resnet18", "size": 32, "forward_batch": 8, "batches": [8, 4], "steps": 2, "networks": ["unet"],
    },
    "deep": {
        "encoder": "resnet50", "size": 64, "forward_batch": 16, "gradient_batch": 4, "batches": [24, 4], "steps": 2,
        "networks": ["classifier"],
    },
}  # fmt: skip
"""The ladder's smallest plans: a classifier, a U-Net, and a classifier with bottlenecks."""

IMPORTED_FIRST = "import contextlib\nwith contextlib.suppress(ImportError):\n    import keras_pneumo\n"
IN_FAULTS_CODE = "import sys; sys.path.insert(0, {here!r}); import planted; planted.{function}(*sys.argv[1:])"


def text_with(fault: Fault) -> str:
    """Return the file's text with the fault in it.

    Raises:
        ValueError: the line does not stand in its file exactly once.
    """
    lines = (REPOSITORY / fault.file).read_text(encoding="utf-8").splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip() == fault.line]
    if len(places) != 1:
        raise ValueError(f"{fault.file} has {fault.name}'s line {fault.line!r} {len(places)} times, not once")
    lines[places[0]] = lines[places[0]].replace(fault.line, fault.planted)
    return "".join(lines)


def plant(folder: Path, fault: Fault | None) -> Path:
    """Make a checkout in ``folder`` whose code has the fault; what is not code of the two teams is linked."""
    without_caches = shutil.ignore_patterns("__pycache__")
    for part in (PACKAGE, TEAM):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=without_caches)
    for parent in (REPOSITORY, REPOSITORY / "experiments"):
        for path in parent.iterdir():
            link = folder / path.relative_to(REPOSITORY)
            if not link.exists() and path.name not in (".git", "runs", "data"):
                link.symlink_to(path)
    if fault is not None:
        (folder / fault.file).write_text(text_with(fault), encoding="utf-8")
    # Python imports this at its start. "python -m" would otherwise look into the current folder first.
    (folder / "sitecustomize.py").write_text(IMPORTED_FIRST, encoding="utf-8")
    return folder


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment in which every Python takes its code from ``checkout``, wherever it is started."""
    return {**os.environ, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}


def call(checkout: Path, function: str, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Run a function of this module in a new process with the code of ``checkout``."""
    code = IN_FAULTS_CODE.format(here=str(Path(__file__).parent), function=function)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(checkout), check=False)


def run_with(fault: Fault, arguments: list[str]) -> int:
    """Run a command of ``keras-pneumo`` with the fault; return its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = plant(Path(folder), fault)
        print(f"planted: {fault.what} ({fault.file})", file=sys.stderr)
        command = [sys.executable, "-m", PACKAGE, *arguments]
        return subprocess.run(command, env=environment(checkout), check=False).returncode


# The next functions run in processes of their own, with the code of a checkout.


def compute_inputs(folder: str, plan: str) -> None:
    """Write the ladder's inputs."""
    from keras_pneumo.parity.inputs import LadderPlan, write_inputs

    given = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(plan).items()}
    write_inputs(Path(folder), None, LadderPlan(**given))


def compute_torch(folder: str, compare: str) -> None:
    """Compute PyTorch's side; with ``compare`` print the first check that fails as JSON."""
    from keras_pneumo.parity import backends

    own = Path(folder)
    process = backends.start_torch(backends.torch_python(), backends.torch_script(), own)
    if failure := backends.wait_for(process, own, backends.TORCH):
        raise SystemExit(f"PyTorch's process failed: {failure}")
    if compare:
        print(json.dumps(_first_broken(own, compute=False)))


def compute_keras(folder: str, compare: str) -> None:
    """Compute and compare our checks in order until one fails, and print it as JSON."""
    print(json.dumps(_first_broken(Path(folder), compute=True)))


def _first_broken(folder: Path, compute: bool) -> dict[str, object] | None:
    """Return the first check that fails; with ``compute`` each is computed before it is compared."""
    from keras_pneumo.parity import backends, checks, ladder

    every = list(ladder.list_checks(backends.read_task(folder)))
    backend = backends.Backend(
        folder, backends.KERAS, backends.read_task(folder), backends.read_arrays(folder / backends.INPUTS)
    )
    backend.own.mkdir(exist_ok=True)
    done: set[str] = set()
    for check in every:
        place = {"number": check.number, "check": check.title, "what": check.what}
        if compute and check.computation not in done:
            done.add(check.computation)
            try:
                checks.COMPUTATIONS[check.computation](backend)
            except Exception as error:  # a fault may end in any of them, which a user would see too
                return place | {"first": str(error), "message": f"{type(error).__name__}: {error}"}
        ladder.list_checks = lambda _task, check=check: iter([check])
        (result,) = ladder.evaluate_checks(folder)
        if not result.passed:
            return place | {"first": result.keras.first, "message": ladder.locate(result)}
    return None


class Runner:
    """Runs faults against the right arrays of each plan, which are computed when they are first needed."""

    def __init__(self, work: Path) -> None:
        """``work`` is a folder for what is computed."""
        self.work = work
        self.stamp = _stamp()

    def right(self, plan: str) -> Path:
        """Return the exchange folder with the right arrays of both sides, made as far as they are not there yet.

        Raises:
            SystemExit: a check fails without any fault.
        """
        folder = self.work / plan
        done = folder / DONE
        if not done.exists() or json.loads(done.read_text())["code"] != self.stamp:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            done.write_text(json.dumps({"code": self.stamp, "parts": []}))
        for part, argument in (("inputs", json.dumps(PLANS[plan])), ("torch", ""), ("keras", "compare")):
            state = json.loads(done.read_text())
            if part in state["parts"]:
                continue
            ended = call(REPOSITORY, f"compute_{part}", folder, argument)
            if ended.returncode or (part == "keras" and ended.stdout.splitlines()[-1] != "null"):
                raise SystemExit(f"The ladder fails without a fault: {ended.stdout}{_last_line(ended)}")
            done.write_text(json.dumps({**state, "parts": [*state["parts"], part]}))
        return folder

    def run(self, fault: Fault) -> dict[str, object]:
        """Plant the fault, run, and return where it was found."""
        right = None if fault.test else self.right(fault.plan)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.work) as temporary:
            checkout = plant(Path(temporary) / "checkout", fault)
            if right is None:
                found = _of_test(checkout, fault)
            else:
                own = "keras" if fault.side == "Keras" else "torch"
                exchange = Path(temporary) / "exchange"
                exchange.mkdir()
                for path in right.iterdir():
                    if path.name != own:
                        (exchange / path.name).symlink_to(path)
                done = call(checkout, f"compute_{own}", exchange, "compare")
                ended = {"check": "", "first": _last_line(done)}
                found = ended if done.returncode else json.loads(done.stdout.splitlines()[-1])
        return answer_of(fault, found, round(time.monotonic() - began, 1), self.stamp)


def answer_of(fault: Fault, found: dict[str, object] | None, seconds: float, code: str) -> dict[str, object]:
    """Return what is kept of a fault: the fault, where it was found, and whether that is right."""
    names = ("name", "row", "side", "what", "file", "line", "planted", "check", "first", "reason", "test")
    told = {name: getattr(fault, name) for name in names}
    return {**told, "found": found, "right": is_right(fault, found), "seconds": seconds, "code": code}


def is_right(fault: Fault, found: dict[str, object] | None) -> bool:
    """Whether the first check that failed is the expected one, and names what it must; of an unseen fault, none."""
    if not fault.check:
        return found is None or (bool(fault.test) and found["check"] == fault.test)
    return found is not None and found["check"] == fault.check and bool(re.fullmatch(fault.first, str(found["first"])))


def _of_test(checkout: Path, fault: Fault) -> dict[str, object] | None:
    """Run the fault's test with the code of ``checkout``; return it as the check that found the fault, if it fails."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", fault.test]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(checkout), cwd=REPOSITORY, check=False
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return {"check": fault.test, "first": failed[0].partition(" - ")[2]} if done.returncode == 1 and failed else None


def _stamp() -> str:
    """Return a hash of both teams' code."""
    files = sorted(path for part in (PACKAGE, TEAM) for path in (REPOSITORY / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or "it said nothing").splitlines()[-1][:300]


def markdown(answers: Iterable[dict]) -> str:
    """Return the table of what was planted and where it was found, and what was not planted."""
    lines = ["| row | planted | expected at | caught at | first named | |", "|---|---|---|---|---|---|"]
    for answer in sorted(answers, key=lambda answer: answer["row"] or 99):
        found = answer["found"]
        what = (answer["what"] if answer["row"] else f"PyTorch: {answer['what']}").replace("|", "\\|")
        expected = answer["check"] or (f"`{answer['test'].rpartition('::')[2]}`" if answer["test"] else "not seen")
        the_same = found is not None and found["check"] in (answer["check"], answer["test"])
        where = "not seen" if found is None else "the same" if the_same else found["check"]
        named = "" if found is None or not answer["check"] else f"`{found['first'][:60]}`"
        right = "yes" if answer["right"] else "NO"
        lines.append(f"| {answer['row'] or ''} | {what} | {expected} | {where} | {named} | {right} |")
    lines += [f"| {row.row} | {row.what} | not planted | | | |" for row in UNPLANTED]
    reasons = {answer["row"]: (answer["what"], answer["reason"]) for answer in answers if answer["reason"]}
    reasons |= {row.row: (row.what, row.reason) for row in UNPLANTED}
    lines += ["", "Not seen by the ladder:", ""]
    return "\n".join([*lines, *(f"- Row {row}, {what}: {why}." for row, (what, why) in sorted(reasons.items()))]) + "\n"


def summary(answers: Iterable[dict]) -> str:
    """Return in a sentence how many faults were caught where they belong."""
    ours = {answer["row"] for answer in answers if answer["row"] and answer["check"] and answer["right"]}
    theirs = [answer["right"] for answer in answers if not answer["row"]]
    return (
        f"{len(ours)} of the 40 rows are caught at the expected check of the ladder, and {sum(theirs)} of the "
        f"{len(theirs)} faults on PyTorch's side."
    )


def main() -> int:
    """Run the table, or a command with one fault."""
    by_name = {fault.name: fault for fault in FAULTS}
    if "--" in sys.argv:
        here = sys.argv.index("--")
        names = sys.argv[1:here]
        if len(names) != 1 or names[0] not in by_name:
            print(f"Name one fault before the --: {', '.join(by_name)}.", file=sys.stderr)
            return 2
        return run_with(by_name[names[0]], sys.argv[here + 1 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/planted_faults"))
    parser.add_argument("--only", default="", help="names of faults, separated by commas")
    parser.add_argument("--resume", action="store_true", help="leave out what this code has answered already")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(given.out.resolve() / "work")
    runner.work.mkdir(exist_ok=True)
    path = given.out / JSON
    answers = {answer["name"]: answer for answer in json.loads(path.read_text())["faults"]} if path.exists() else {}
    wanted = [by_name[name] for name in given.only.split(",")] if given.only else list(FAULTS)
    failed = False
    for fault in wanted:
        if given.resume and answers.get(fault.name, {}).get("code") == runner.stamp:
            continue
        try:
            answer = answers[fault.name] = runner.run(fault)
        except SystemExit as stopped:  # without the right arrays of this plan the faults of the others still run
            print(f"{fault.name}: not run. {stopped}", flush=True)
            failed = True
            continue
        kept = [answers[name] for name in by_name if name in answers]
        found = answer["found"] or {"check": "nothing", "first": ""}
        state = "as expected" if answer["right"] else f"EXPECTED {fault.check or 'nothing'} at {fault.first}"
        print(f"{fault.name}: {found['check']} at {found['first']}, {answer['seconds']} s, {state}", flush=True)
        text = {"summary": summary(kept), "faults": kept, "not_planted": [vars(row) for row in UNPLANTED]}
        path.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (given.out / MARKDOWN).write_text(markdown(kept), encoding="utf-8")
    kept = [answers[name] for name in by_name if name in answers]
    print(summary(kept))
    return 0 if not failed and all(answer["right"] for answer in kept) else 1


if __name__ == "__main__":
    sys.exit(main())
