"""Pictures of a training: the curves of its log, and the learning-rate finder's."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window system on a server
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

INK, TRAIN, VALIDATION = "#333a45", "#8a94a6", "#0b6e99"


def draw_curves(log: pd.DataFrame, path: Path) -> None:
    """Loss, AUROC or Dice, and learning rate by epoch, from the rows of ``log.csv``; the best epoch is marked."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    epochs = log["epoch"]
    axes[0].plot(epochs, log["loss"], color=TRAIN, marker="o", markersize=3, label="training")
    axes[0].plot(epochs, log["validation_loss"], color=VALIDATION, marker="o", markersize=3, label="validation")
    score, name = ("validation_dice", "Dice") if "validation_dice" in log else ("validation_auroc", "AUROC")
    axes[0].set_title("Loss" if name == "Dice" else "Cross-entropy")
    axes[0].legend(frameon=False)
    axes[1].plot(epochs, log[score], color=VALIDATION, marker="o", markersize=3)
    if name == "AUROC":
        axes[1].axhline(0.5, color=TRAIN, linewidth=0.8, linestyle=":")
    axes[1].set_title(f"Validation {name}")
    best = log[log["best"] == 1].tail(1)
    if len(best):
        row = best.iloc[0]
        axes[1].plot(row["epoch"], row[score], "o", markersize=9, fillstyle="none", color="#c2410c")
        axes[1].annotate(
            f"best {row['validation_auroc']:.3f}",
            (row["epoch"], row[score]),
            xytext=(0, -16),
            textcoords="offset points",
            ha="center",
            color="#c2410c",
            fontsize=9,
        )
    axes[2].plot(epochs, log["learning_rate"], color=INK, marker="o", markersize=3)
    axes[2].set_yscale("log")
    axes[2].set_title("Learning rate at the epoch's end")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_rates(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, suggested: float, path: Path) -> None:
    """The learning-rate finder's plot: loss against rate, both (n,), and the suggested rate."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axis.plot(rates, losses, color=TRAIN, linewidth=0.7, alpha=0.6, label="each step")
    axis.plot(rates, smoothed, color=VALIDATION, linewidth=2, label="smoothed")
    axis.axvline(suggested, color="#c2410c", linestyle="--", label=f"suggested: {suggested:.1e}")
    axis.set_xscale("log")
    low, high = float(smoothed.min()), float(smoothed[0])
    axis.set_ylim(low - 0.2 * (high - low + 1e-3), high + 1.0 * (high - low + 1e-3))
    axis.set_xlabel("learning rate of the head")
    axis.set_ylabel("cross-entropy")
    axis.set_title("Learning-rate finder")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    temporary = path.with_name(f"writing.{path.name}")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(path)
