"""PyTorch's part of the ladder: recipes, as the PyTorch team carries them out.

What is drawn (order, parameters of augmentation, crops, batches), what learns and how fast, schedules, whole trainings
of a small network by each setting, the epochs that are kept, and networks that predict together. All of it is by the
functions of this folder's trainings (``data``, ``augmentation``, ``training``, ``classifier``, ``segmenter``), from the
recipes' own files.
"""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from augmentation import crop, draw, seeds
from classifier import probabilities
from data import Draws, Radiographs, batches
from ladder_networks import build, nhwc
from recipe import read_recipe
from safetensors.torch import load_file
from segmenter import predict
from submission import auroc, fit_threshold
from torch import nn
from training import cross_entropy, fit, make_optimizer, make_schedule, one_epoch, set_learning, set_modes


class Small(nn.Module):
    """A classifier with the names of ResNet's parts: the stem, a convolution each of stage 1 and 4, the head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, stride=4, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 6))
        self.layer4 = nn.Sequential(Block(6, 6))
        self.fc = nn.Linear(6, 1)

    def forward(self, image):
        """Return logits, (n, 1)."""
        return self.fc(self.layer4(self.layer1(self.bn1(self.conv1(image)).relu())).mean((2, 3)))


class Block(nn.Module):
    """A convolution, BatchNorm and ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)

    def forward(self, features):
        """Return half the side."""
        return self.bn1(self.conv1(features)).relu()


class Recipes:
    """The recipes' files, images, and the small network's start."""

    def __init__(self, folder, task):
        self.folder, self.task = folder, task

    def read(self, name):
        """Read one recipe."""
        path = self.folder / "recipes" / f"{name}.json"
        return read_recipe(path, "segmenter" if '"segmenter"' in path.read_text() else "classifier")

    def radiographs(self, recipe):
        """Make the data set of a training by this recipe."""
        plan = self.task["recipe_images"]
        ids = [f"image{number:02}" for number in range(plan["images"])]
        table = pd.DataFrame({"image_id": ids, "label": [int(row < plan["positives"]) for row in range(len(ids))]})
        masks = recipe.task == "segmenter"
        return Radiographs(self.folder, table, recipe.image_size, masks, recipe.augmentation, recipe.crop, recipe.seed)

    def network(self):
        """Make the small network with its start weights."""
        network = Small()
        network.load_state_dict(load_file(self.folder / "small.start.safetensors"), strict=True)
        return network


def order(recipes, task, given, keep):
    """Which image is drawn when, how often it came before, and the bounds of the batches."""
    for name in task["drawn"]:
        recipe = recipes.read(name)
        sampler = Draws(recipes.radiographs(recipe).labels, recipe)
        arrays = {"images of each batch": np.array([len(batch) for batch in sampler])}
        for epoch in range(task["recipe_images"]["epochs"]):
            sampler.epoch = epoch
            keys = np.array([key for batch in sampler for key in batch])
            arrays[f"epoch {epoch + 1}: images"] = keys[:, 0]
            arrays[f"epoch {epoch + 1}: times drawn before"] = keys[:, 2]
        keep(f"order.{name}", arrays)


def parameters(recipes, task, given, keep):
    """Each draw's parameters of augmentation, by what the recipe says of each range, and the corner of its crop."""
    for name in task["drawn"]:
        recipe, columns = recipes.read(name), {}
        ranges, size = recipe.augmentation, recipe.image_size
        for epoch in range(task["recipe_images"]["epochs"]):
            keys = [
                (image, epoch, repeat)
                for image, repeat in zip(given["drawn_images"], given["drawn_repeats"], strict=True)
            ]
            drawn = draw(recipe.seed, keys)
            flip, x, y, scale, rotate, brightness, contrast, gamma, noise, clahe = drawn.T[:10]
            values = {
                "flip": flip < ranges.flip,
                "shift_x": (2 * x - 1) * ranges.shift,
                "shift_y": (2 * y - 1) * ranges.shift,
                "scale": 1 - ranges.scale + 2 * ranges.scale * scale,
                "rotate": (2 * rotate - 1) * ranges.rotate,
                "brightness": (2 * brightness - 1) * ranges.brightness,
                "contrast": 1 - ranges.contrast + 2 * ranges.contrast * contrast,
                "gamma": np.exp((2 * gamma - 1) * ranges.gamma),
                "noise": noise * ranges.noise,
                "clahe": clahe < ranges.clahe,
                "noise seeds": seeds(drawn),
            }
            if recipe.crop:
                places = torch.arange(size * size).reshape(1, 1, size, size).expand(len(keys), 1, size, size)
                first = crop(places, recipe.crop, drawn)[:, 0, 0, 0].numpy()
                values["corners of crops"] = np.stack([first // size, first % size], 1)
            for kind, value in values.items():
                columns.setdefault(kind, []).append(np.asarray(value).astype(np.float32))
        keep(f"drawn.{name}", {kind: np.concatenate(parts) for kind, parts in columns.items()})


def assembled(recipes, task, given, keep):
    """The batches of the second epoch and those after it, from the loader of a training."""
    for name in task["drawn"]:
        recipe, step, arrays = recipes.read(name), 0, {}
        data = recipes.radiographs(recipe)
        sampler = Draws(data.labels, recipe)
        for epoch in range(1, task["recipe_images"]["epochs"]):
            sampler.epoch = epoch
            for images, labels, masks in batches(data, sampler):
                step += 1
                arrays[f"step {step}: images"] = nhwc(images).numpy()
                if masks is not None:
                    arrays[f"step {step}: masks"] = nhwc(masks).numpy()
                arrays[f"step {step}: labels"] = labels.numpy()  # last: a crop's label follows from its mask
        keep(f"batches.{name}", arrays)


def learning(recipes, task, given, keep):
    """Which tensors learn in a recipe's first phase, at which rate, and with which decay; 0 and 0 for others."""
    for name in task["learning"]:
        recipe, network = recipes.read(name), recipes.network()
        set_learning(network, recipe, not recipe.frozen_epochs)
        rate = recipe.frozen_learning_rate or recipe.learning_rate if recipe.frozen_epochs else recipe.learning_rate
        names = {id(parameter): key for key, parameter in network.named_parameters()}
        arrays = {key: np.zeros(2) for key in names.values()}
        for group in make_optimizer(network, recipe, rate).param_groups:
            for parameter in group["params"]:
                arrays[names[id(parameter)]] = np.array([group["lr"], group["weight_decay"]])
        keep(f"learning.{name}", arrays)


def schedules(recipes, task, given, keep):
    """The rate and the momentum of each step, and the rates that a plateau gives after each epoch."""
    arrays = {}
    for label, name in task["schedules"].items():
        recipe, network = recipes.read(name), recipes.network()
        optimizer = make_optimizer(network, recipe, recipe.learning_rate)
        schedule = make_schedule(optimizer, recipe, task["schedule_steps"], task["schedule_epoch"])
        rates, momenta = [], []
        for step in range(task["schedule_steps"]):
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["betas"][0])
            optimizer.step()
            if schedule is not None and step < task["schedule_steps"] - 1:
                schedule.step()
        arrays |= {f"{label}: rate": np.array(rates), f"{label}: momentum": np.array(momenta)}
    for label, plan in task["plateaus"].items():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, plan["mode"], factor=plan["factor"], patience=plan["patience"]
        )
        rates = []
        for figure in plan["figures"]:
            plateau.step(math.nan if figure is None else figure)
            rates.append(optimizer.param_groups[0]["lr"])
        arrays[f"plateau of {label}"] = np.array(rates)
    keep("recipe_schedules", arrays)


def fitted(recipes, name, results, out):
    """Train the small network by a recipe; ``results`` gives each epoch's score and loss. Return the weights seen."""
    recipe, seen = recipes.read(name), []

    def loss_of(logits, labels, _masks):
        return cross_entropy(logits, labels, recipe.label_smoothing, recipe.positive_weight)

    def evaluate(network):
        seen.append({key: value.detach().clone().numpy() for key, value in network.state_dict().items()})
        return next(results)

    out.mkdir(parents=True)
    fit(recipes.network(), recipe, recipes.radiographs(recipe), loss_of, evaluate, out)
    return seen, pd.read_csv(out / "log.csv")


def trainings(recipes, task, given, keep):
    """Train by each recipe: after each epoch, how far each tensor is from its start, and the epoch's loss."""
    start, losses = load_file(recipes.folder / "small.start.safetensors"), {}
    for name in task["settings"]:
        rising = ((float(epoch), 1.0) for epoch in range(100))
        seen, log = fitted(recipes, name, rising, keep.folder / "runs" / name)
        arrays = {
            f"epoch {epoch}: {key}": value - start[key].numpy()
            for epoch, state in zip(log["epoch"], seen, strict=True)
            for key, value in state.items()
            if "num_batches" not in key
        }
        keep(f"recipe.{name}", arrays)
        if name in task["epoch_losses"]:
            rows = log[np.isfinite(log["loss"])]
            losses |= {f"{name}, epoch {row.epoch}": np.array([row.loss]) for row in rows.itertuples()}
    keep("epoch_losses", losses)


def validation_scores(recipes, task, given, keep):
    """AUROC and threshold of probabilities with many ties, and of others without."""
    arrays = {}
    for name in ("ties", "no ties"):
        truth, score = given["score_labels"], given[f"score_values {name}"]
        arrays[f"AUROC, {name}"] = np.array([auroc(truth, score)])
        arrays[f"threshold, {name}"] = np.array([fit_threshold(truth, score)])
    keep("validation_scores", arrays)


def choices(recipes, task, given, keep):
    """Train with scores that are written down: which epochs are best and kept, the rates, and the end."""
    for name, (scores, losses) in task["choices"].items():
        pairs = ([math.nan if value is None else value for value in pair] for pair in zip(scores, losses, strict=True))
        out = keep.folder / "runs" / name
        _, log = fitted(recipes, name, pairs, out)
        kept = sorted(int(re.sub(r"\D", "", path.stem)) for path in out.glob("epoch_*.safetensors"))
        arrays = {
            "epochs": log["epoch"].to_numpy(float),
            "best so far": log["best"].to_numpy(float),
            "kept": np.array(kept, float),
            "rates": log["learning_rate"].to_numpy(float),
        }
        keep(f"choices.{name}", arrays)


def averages(recipes, task, given, keep):
    """Two networks predict together, with and without mirror images."""
    for network, names in task["averages"].items():
        networks, arrays = [], {}
        for kind in ("weights", "start"):
            networks.append(build(network, task["encoder"]))
            networks[-1].load_state_dict(load_file(recipes.folder / f"{network}.{kind}.safetensors"), strict=True)
            networks[-1].to(memory_format=torch.channels_last)
        for label, name in names.items():
            recipe = recipes.read(name)
            data = recipes.radiographs(recipe)
            data.augmentation = None  # images as they are, as validation and test images are read
            if network == "classifier":
                arrays[f"{label}: probabilities"] = probabilities(networks, data, recipe)
                continue
            rows = list(predict(networks, data, recipe, recipe.flip_averaging))
            arrays[f"{label}: probabilities"] = np.array([row[1] for row in rows])
            arrays[f"{label}: maps"] = np.stack([row[0] for row in rows])
        keep(f"averages.{network}", {key: value.astype(np.float64) for key, value in arrays.items()})


def real_steps(recipes, task, given, keep):
    """Steps of the real recipe on real radiographs; and again, from weights of which one differs in its last bit."""
    plan = task["real_steps"]
    if not plan:
        return
    folder, recipe = recipes.folder / "real", recipes.read("real_steps")
    table = pd.read_csv(folder / "real.csv", dtype={"image_id": str})
    start = load_file(recipes.folder / "real.start.safetensors")
    data = Radiographs(folder, table, recipe.image_size, False, recipe.augmentation, recipe.crop, recipe.seed)
    trained = [name for name, value in start.items() if value.ndim == 4]
    arrays = {}
    for control in range(plan["controls"] + 1):
        state = {name: value.clone() for name, value in start.items()}
        if control:
            changed = state[trained[(control - 1) * (len(trained) - 1) // plan["controls"]]].view(-1)
            changed[0] = torch.nextafter(changed[0], changed[0] + 1)
        network = build("classifier", recipe.encoder)
        network.load_state_dict(state, strict=True)
        arrays[f"control {control}" if control else "losses"] = steps_of(network, recipe, data, plan["steps"])
    keep("real_steps", arrays)


def steps_of(network, recipe, data, count):
    """Train for some steps; return each step's loss."""
    sampler, losses = Draws(data.labels, recipe), []

    def loss_of(logits, labels, _masks):
        values = cross_entropy(logits, labels, recipe.label_smoothing, recipe.positive_weight)
        losses.append(values.detach().mean().item())
        return values

    network.to(memory_format=torch.channels_last)
    set_learning(network, recipe, True)
    set_modes(network, recipe, True)
    optimizer = make_optimizer(network, recipe, recipe.learning_rate)
    schedule = make_schedule(optimizer, recipe, recipe.epochs * len(sampler), len(sampler))
    scaler = torch.amp.GradScaler(enabled=False)
    loader = batches(data, sampler)
    while len(losses) < count:
        one_epoch(network, recipe, loader, loss_of, optimizer, schedule, scaler)
        sampler.epoch += 1
    return np.array(losses[:count])


def compute(folder, task, given, keep):
    """Compute every check of recipes."""
    recipes = Recipes(Path(folder), task)
    for check in (
        order, parameters, assembled, learning, schedules, trainings, validation_scores, choices, averages,
        real_steps,
    ):  # fmt: skip
        check(recipes, task, given, keep)
