"""The page "Can these two be compared?": one offline HTML file, the answer first, every check with its bound."""

from __future__ import annotations

from pathlib import Path

from keras_pneumo.evaluation.report.page import render_page
from keras_pneumo.parity.comparison import Difference
from keras_pneumo.parity.ladder import Ladder, shown
from keras_pneumo.storage.files import write_bytes

BACKENDS = {
    "torch": "PyTorch",
    "keras": "Keras on TensorFlow",
    "keras_on_torch": "Keras on PyTorch",
    "keras_on_jax": "Keras on JAX",
}


def write_page(path: Path, ladder: Ladder) -> Path:
    """Write the page.

    Raises:
        PneumoError: the file cannot be written.
    """
    page = render_page(
        "parity.html",
        Path(__file__).with_name("templates"),
        ladder=ladder,
        task=ladder.task,
        backends={name: label for name, label in BACKENDS.items() if name in ladder.versions},
        shown=shown,
        measured=measured,
        checks=_by_check(ladder),
    )
    write_bytes(path, page.encode())
    return path


def measured(difference: Difference | None) -> str:
    """Format a relative difference; a dash where the backend has no answer."""
    return "–" if difference is None else shown(difference.relative)


def _by_check(ladder: Ladder) -> list[dict[str, object]]:
    """Group results by check, each remark once."""
    numbers = dict.fromkeys(result.number for result in ladder.results)
    checks: list[dict[str, object]] = []
    for number in numbers:
        parts = [result for result in ladder.results if result.number == number]
        remarks = {part.remark: [other.what for other in parts if other.remark == part.remark] for part in parts}
        checks.append(
            {
                "number": number,
                "title": parts[0].title,
                "parts": parts,
                "passed": all(part.passed for part in parts),
                "bound": parts[0].bound,
                "remarks": [(" and ".join(names) if len(remarks) > 1 else "", text) for text, names in remarks.items()],
                "absent": parts[0].absent,
                "absent_on_jax": parts[0].absent_on_jax,
            }
        )
    return checks
