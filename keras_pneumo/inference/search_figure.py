"""The picture of a search: how the mean Dice on validation changes with the rule, so that a chance peak is seen."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window system on a server
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from keras_pneumo.inference.postprocess import AREAS, BOTTOMS, TOPS, PostprocessingSearch

INK, BEST = "#333a45", "#c2410c"


def draw_search(search: PostprocessingSearch, path: Path) -> None:
    """Mean Dice over top and bottom score, top score and area, and component and gate; the rest as fitted."""
    rule = search.rule
    top, area = TOPS.index(rule.top), AREAS.index(rule.area)
    gate, bottom = search.gates.index(rule.gate), BOTTOMS.index(rule.bottom)
    component = search.components.index(rule.component)
    surface = search.surface
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    _heat(axes[0], surface[:, area, gate, :, component], "top score", TOPS, "bottom score", BOTTOMS, (top, bottom))
    _heat(axes[1], surface[:, :, gate, bottom, component], "top score", TOPS, "pixels over it", AREAS, (top, area))
    gates = [f"{value:.3f}" if value else "none" for value in search.gates]
    _heat(axes[2], surface[top, area, :, bottom, :], "gate", gates, "component", search.components, (gate, component))
    figure.suptitle(
        f"Mean Dice on {search.images} validation images; {search.dice:.4f} at the rule kept. Research use only.",
        color=INK,
        fontsize=11,
    )
    temporary = path.with_name(f"writing.{path.name}")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(path)


def _heat(
    axis: Axes, values: np.ndarray, x_name: str, x: object, y_name: str, y: object, best: tuple[int, int]
) -> None:
    """One surface, shape (x, y), x to the right and y upwards."""
    image = axis.imshow(values.T, origin="lower", aspect="auto", cmap="viridis")
    axis.plot(*best, "o", markersize=12, fillstyle="none", color=BEST, markeredgewidth=2)
    for name, labels, ticks, set_labels, set_name in (
        (x_name, x, axis.set_xticks, axis.set_xticklabels, axis.set_xlabel),
        (y_name, y, axis.set_yticks, axis.set_yticklabels, axis.set_ylabel),
    ):
        shown = list(map(str, labels))  # type: ignore[call-overload]
        ticks(range(len(shown)))
        set_labels(shown, fontsize=7, rotation=90 if name == x_name else 0)
        set_name(name)
    plt.colorbar(image, ax=axis, shrink=0.85)
