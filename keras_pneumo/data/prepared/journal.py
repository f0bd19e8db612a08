"""What an interrupted preparation has already done, image by image, so that the next one goes on from there.

The journal is a file of JSON lines in the prepared folder: first what is being prepared, then one line per image. A
line cut short by a kill is dropped, and its image is done again. A finished folder has no journal; its manifest and
cases.csv hold the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from keras_pneumo.data.prepared.rendering import Rendered
from keras_pneumo.storage.files import sha256_file, write_bytes

JOURNAL_NAME = ".journal.jsonl"


def read_journal(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Rendered]]:
    """What the journal in ``folder`` was begun for (None when there is no journal) and its finished images by id."""
    try:
        lines = (folder / JOURNAL_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None, {}
    done: dict[str, Rendered] = {}
    head: dict[str, Any] | None = None
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if number == 0:
                head = dict(entry)
            else:
                rendered = Rendered(**entry)
                done[rendered.image_id] = rendered
        except (ValueError, TypeError):
            continue
    return head, done


@contextlib.contextmanager
def open_journal(folder: Path, head: dict[str, Any], done: dict[str, Rendered]) -> Iterator[TextIO]:
    """Begin the journal of ``folder`` with what is already done, whole or not at all, and keep it open for more."""
    lines = [json.dumps(head, sort_keys=True), *(_line(rendered) for rendered in done.values())]
    write_bytes(folder / JOURNAL_NAME, ("\n".join(lines) + "\n").encode())
    with (folder / JOURNAL_NAME).open("a", encoding="utf-8") as stream:
        yield stream


def add_to_journal(stream: TextIO, rendered: Rendered) -> None:
    """Note one image as done; it is on its way to the disk when this returns."""
    stream.write(_line(rendered) + "\n")
    stream.flush()


def _line(rendered: Rendered) -> str:
    return json.dumps(asdict(rendered), sort_keys=True)


def remove_journal(folder: Path) -> None:
    """End the journal: the folder is complete."""
    (folder / JOURNAL_NAME).unlink(missing_ok=True)


def intact_files(folder: Path, files: dict[str, str]) -> set[str]:
    """Those of ``files`` (path in the folder -> SHA-256) that are there and unchanged."""

    def is_intact(item: tuple[str, str]) -> bool:
        try:
            return sha256_file(folder / item[0]) == item[1]
        except OSError:
            return False

    with ThreadPoolExecutor() as threads:  # hashing and reading leave the interpreter's lock
        items = list(files.items())
        return {item[0] for item, intact in zip(items, threads.map(is_intact, items), strict=True) if intact}
