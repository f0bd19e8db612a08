"""PyTorch's part of the ladder: masks made smaller, and the rule by which maps become masks, from its definition.

``keras-pneumo masks`` fits the rule for every team, the PyTorch team too. Here the search is written once more, without
its tables of counts: every candidate's masks are drawn and scored.
"""

import itertools

import cv2
import numpy as np
import torch
from ladder_files import SIDE, encode, truths_of
from torch.nn import functional


def reduced(task, given, keep):
    """Masks at each size: a pixel is in where at least half of its area is."""
    arrays = {}
    for number, mask in enumerate(given["large_masks"]):
        whole = torch.from_numpy(mask)[None, None].float()
        for size in task["sizes"]:
            share = functional.avg_pool2d(whole, mask.shape[0] // size)
            arrays[f"mask {number} at {size}"] = (share[0, 0] >= 0.5).to(torch.uint8).numpy()
    keep("masks", arrays)


def levels(logits):
    """Probability maps in 255ths on the grid of masks, uint8 (1024, 1024) each."""
    maps = torch.round(torch.sigmoid(torch.from_numpy(logits[..., 0])) * 255).byte().numpy()
    return [cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for values in maps]


def at_least(values, probability):
    """Pixels whose probability is at least this one; levels are whole 255ths."""
    return values >= int(np.ceil(round(probability * 255, 6)))


def without_small_parts(mask, least):
    """Drop connected parts (8 neighbours) of fewer pixels."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    sizes = np.bincount(labels.ravel(), minlength=count)
    return mask & (sizes >= least)[labels]


def rule(task, given, keep):
    """Fit the rule on the first maps by trying every candidate; draw the masks of the others."""
    plan = task["mask_rule"]
    count = plan["fitted"]
    maps = levels(given["predicted_masks"])
    probability = torch.sigmoid(torch.from_numpy(given["predicted_logits"][:, 0]).double()).numpy()
    truths = list(truths_of(task["truth"]).values())
    gates = [0.0, *sorted({round(float(q), 6) for q in np.quantile(probability[:count], plan["quantiles"])})]
    tops, areas, bottoms, components = (plan[name] for name in ("tops", "areas", "bottoms", "components"))
    empty = np.array([float(not truth.any()) for truth in truths[:count]])
    # Of each image: its Dice by bottom and component if it gets a mask, and whether it may by top and area.
    gains = np.zeros((count, len(bottoms), len(components)))
    reaches = np.zeros((count, len(tops), len(areas)), bool)
    for row in range(count):
        truth = truths[row].reshape(SIDE, SIDE).T  # runs go down the columns
        reaches[row] = [[at_least(maps[row], top).sum() >= area for area in areas] for top in tops]
        for (column, bottom), (part, least) in itertools.product(enumerate(bottoms), enumerate(components)):
            mask = without_small_parts(at_least(maps[row], bottom), least)
            total = mask.sum() + truth.sum()
            gains[row, column, part] = 2 * (mask & truth).sum() / total if total else 1.0
    best, found = -1.0, None
    places = itertools.product(enumerate(tops), enumerate(areas), gates, enumerate(bottoms), enumerate(components))
    for (i, top), (j, area), gate, (k, bottom), (m, component) in places:
        if bottom > top:
            continue
        positive = reaches[:, i, j] & (probability[:count] >= gate)
        dice = np.where(positive, gains[:, k, m], empty).mean()
        if round(dice, 7) > best:  # of equal ones the first stays
            best, found = round(dice, 7), (top, area, gate, bottom, component, dice)
    top, area, gate, bottom, component, dice = found
    texts = []
    for values, chance in zip(maps[count:], probability[count:], strict=True):
        mask = without_small_parts(at_least(values, bottom), max(component, 1))
        mask &= bool(at_least(values, top).sum() >= area and chance >= gate)
        texts.append(encode(mask))
    arrays = {"top": top, "area": area, "gate": gate, "bottom": bottom, "component": component}
    arrays = {name: np.array([str(value)]) for name, value in arrays.items()}
    arrays["Dice on the images it was fitted on"] = np.array([f"{dice:.9f}"])
    keep("mask_rule", arrays | {"masks": np.array(texts)})
