"""A beginner's fastai classifier: ``vision_learner`` on ResNet-50 with default settings.

    python experiments/torch_team/fastai_classifier.py --experiment runs/demo_classifier --data data/prepared/phantom \\
        --out runs/fastai_classifier

``make fastai-classifier`` does all of it. Of the shared experiment only the image size, the number of epochs, the fold
and the seed are taken. The rest is fastai 2.8: batches of 64, Adam at 1e-3, ``fit_one_cycle``, ``aug_transforms()``,
the body frozen if it starts from ImageNet's weights, a threshold of 0.5, the last epoch's weights.
ImageNet's weights are used if torchvision has them in its cache already; nothing is downloaded.
"""

from __future__ import annotations

import time
from pathlib import Path

import fastai
import pandas as pd
import torch
import torchvision
from data import is_synthetic, read_subsets
from fastai.vision.all import ImageDataLoaders, accuracy, aug_transforms, resnet50, set_seed, vision_learner
from recipe import read_recipe, refuse
from safetensors.torch import save_file
from submission import declaration, write_submission
from training import arguments


def imagenet_is_cached() -> bool:
    """Return whether torchvision's default ResNet-50 weights are in its cache."""
    name = Path(torchvision.models.ResNet50_Weights.DEFAULT.url).name
    return (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()


def main() -> None:
    """Train, predict validation and test, write the submission."""
    given = arguments(__doc__.splitlines()[0])
    recipe = read_recipe(given.experiment, "classifier")
    if given.init is not None:
        refuse("fastai's learner starts as it always does; leave out --init.")
    tables, split = read_subsets(given.data, recipe.fold)
    folder = given.data / f"images_{recipe.image_size}"
    if not folder.is_dir():
        refuse(f"There is no {folder}. Prepare size {recipe.image_size} with keras-pneumo.")
    pretrained = imagenet_is_cached()
    recipe.weights = "imagenet_v2" if pretrained else "random"
    start = "ImageNet's weights" if pretrained else "random weights, since ImageNet's are not in the cache"
    print(f"Starts from {start}.")
    set_seed(recipe.seed)

    both = pd.concat([tables["train"].assign(held_out=False), tables["validation"].assign(held_out=True)])
    loaders = ImageDataLoaders.from_df(
        both,
        given.data,
        folder=folder.name,
        suff=".png",
        valid_col="held_out",
        batch_tfms=aug_transforms(),
        bs=min(64, len(tables["train"])),  # of fewer images than its 64, fastai would drop all
    )
    learner = vision_learner(loaders, resnet50, pretrained=pretrained, metrics=accuracy)
    began = time.monotonic()
    with learner.no_bar():
        learner.fit_one_cycle(recipe.frozen_epochs + recipe.epochs)
        seconds = time.monotonic() - began

        predictions = {}
        for name, file in (("validation", "validation.csv"), ("test", "predictions.csv")):
            files = [folder / f"{image_id}.png" for image_id in tables[name]["image_id"]]
            probability, _ = learner.get_preds(dl=loaders.test_dl(files))
            predictions[file] = tables[name][["image_id"]].assign(probability=probability[:, 1].double().numpy())
    given.out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in learner.model.state_dict().items()}
    save_file(state, given.out / "learner.safetensors")
    framework = f"fastai {fastai.__version__}, PyTorch {torch.__version__}"
    normalised = "ImageNet mean and standard deviation" if pretrained else "no normalisation, fastai's way if untrained"
    preprocessing = f"the prepared folder's PNGs as RGB, scaled to [0, 1], {normalised}"
    notes = {"framework": framework, "preprocessing": preprocessing, "synthetic": is_synthetic(given.data)}
    declared = declaration("fastai resnet50", "classification", recipe, split, seconds, **notes)
    write_submission(given.out, declared, 0.5, predictions)


if __name__ == "__main__":
    main()
