"""Measures this project against what one would otherwise run, and writes bench.json and a page with plots.

    make bench                                   # or: python experiments/benchmarks/bench.py --out runs/bench
    make bench ONLY=training_step                # one file's rows, or those whose name contains the text
    python experiments/benchmarks/bench.py --table docs/benchmarks.md    # the docs' table, from --out's bench.json

Each file of this folder with a function ``rows(lab)`` measures one subject; it yields rows (``measuring.Row``), which
are measured one after the other and written after each. The rows that ``bench.json`` already has are kept when they
were measured on the same machine with the same versions. How a row is measured: ``measuring.py``.

Exit codes: 0 done, 1 done but a file of rows failed, 2 refused. No goal decides it: a timing is no test.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import bench_page
from lab import BUSY, REPOSITORY, Lab, busy_share, describe_machine, open_lab
from measuring import OwnRow, Row, measure_row

from keras_pneumo.storage.files import write_bytes, write_json

FOLDER = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print the table; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of bench.json and bench.html")
    parser.add_argument("--only", default="", help="a file's name, or part of a row's name")
    parser.add_argument("--rows", type=Path, default=FOLDER, help="folder of the files with rows")
    parser.add_argument("--resume", action="store_true", help="leave out rows that this commit's code was measured for")
    parser.add_argument("--growth", default="1,10,100", help="factors of the rows of growth, as 1,10,100")
    parser.add_argument("--quiet", action=argparse.BooleanOptionalAction, help="whether nothing else runs here")
    parser.add_argument("--list", action="store_true", help="print the rows' names and end")
    parser.add_argument("--table", type=Path, help="measure nothing; write bench.json's table into this Markdown file")
    given = parser.parse_args(arguments)
    if given.table:
        record = read_record(given.out / "bench.json")
        if not record.get("rows"):
            print(f"{given.out / 'bench.json'} has no rows yet. Run make bench first.", file=sys.stderr)
            return 2
        bench_page.replace_table(given.table, record)
        return 0
    factors = tuple(int(factor) for factor in given.growth.split(",") if factor)
    lab = open_lab(given.out.resolve() / "scratch", given.quiet, growth=factors)
    files = row_files(given.rows)
    if given.list:
        for row in (row for file in files for row in load(file).rows(lab)):
            print(row.name)
        return 0
    return measure_all(lab, files, given.out, given.only, given.resume)


def measure_all(
    lab: Lab, files: Sequence[Path], out: Path, only: str = "", resume: bool = False, say: Callable[[str], None] = print
) -> int:
    """Measure the rows of some files and write ``bench.json`` and ``bench.html`` after each; give the exit code."""
    machine, commit = describe_machine(lab), commit_of(REPOSITORY)
    record = read_record(out / "bench.json")
    if record and record.get("machine") != machine:
        say("bench.json is of another machine or other versions; its rows are left out.")
        record = {}
    record = {"machine": machine, "rows": record.get("rows", [])}
    measured = {row["name"] for row in record["rows"] if row.get("commit") == commit and row["ratio"] is not None}
    failed, found = False, False
    for file in files:
        try:
            for row in load(file).rows(lab):
                if only and only != file.stem and only not in row.name:
                    continue
                found = True
                if resume and commit and row.name in measured:
                    say(f"{row.name}: measured already")
                    continue
                result = {**measure_one(row, say), "file": file.stem, "commit": commit}
                say(f"  {bench_page.sentence(result)}")
                record["rows"] = with_row(record["rows"], result)
                write_json(out / "bench.json", record)
                write_bytes(out / "bench.html", bench_page.page(record).encode())
        except Exception:  # one file's fault must not hide the rows of the others
            failed = True
            say(f"The rows of {file.name} ended with an error:\n{traceback.format_exc()}")
    if not found and not failed:
        say(f"No row is named {only!r}. The names: {', '.join(file.stem for file in files)}.")
        return 2
    if (out / "bench.html").exists():
        say(f"\n{bench_page.table(record)}\n\n{out / 'bench.html'}")
    return int(failed)


def measure_one(row: Row | OwnRow, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure a row, and say how busy the machine was just before it."""
    busy = busy_share()
    say(f"{row.name}{f' (the machine is busy: {busy:.0%} of its cores)' if busy > BUSY else ''}")
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    state = {"load": round(os.getloadavg()[0], 2), "busy": round(busy, 3), "quiet": busy <= BUSY, "measured": when}
    return {**measure_row(row, say), **state}


def with_row(rows: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with one more, which replaces the row of the same name where it stands."""
    if any(row["name"] == new["name"] for row in rows):
        return [new if row["name"] == new["name"] else row for row in rows]
    return [*rows, new]


def row_files(folder: Path) -> list[Path]:
    """The files of a folder that define ``rows``, by name."""
    return [path for path in sorted(folder.glob("*.py")) if "rows" in _functions(path)]


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def load(path: Path) -> ModuleType:
    """The module of a file, under a name that no other module has."""
    specification = importlib.util.spec_from_file_location(f"benchmark_rows_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


def read_record(path: Path) -> dict[str, Any]:
    """What ``bench.json`` holds; nothing when there is none or it cannot be read."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def commit_of(repository: Path) -> str:
    """The commit that is checked out, '' with changes or outside of git: then nobody knows what was measured."""
    try:
        changes, commit = (
            subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True)
            for words in (("status", "--porcelain", "--untracked-files=no"), ("rev-parse", "--short", "HEAD"))
        )
    except OSError:
        return ""
    return "" if changes.stdout.strip() or commit.returncode else commit.stdout.strip()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    sys.exit(main())
