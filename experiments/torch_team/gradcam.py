"""Makes a run's heat maps with PyTorch, for `keras-pneumo explain --compare`.

Reads a run's weights (strictly) into torchvision's ResNet, or those of a segmenter into smp's U-Net, whose encoder is
explained. Reads from the maps.npz of `keras-pneumo explain` for which images, method and stage, and writes its own
maps. The formulas are written again here and nothing of keras_pneumo is imported, so one mistake cannot be on both
sides.

Command, in PyTorch's environment (make setup-torch), after `keras-pneumo explain RUN PREPARED`:
    .venv-torch/bin/python experiments/torch_team/gradcam.py RUN PREPARED --out twin.npz
then:
    keras-pneumo explain RUN PREPARED --compare twin.npz
Duration and result: experiments/README.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 16


def network_of(run):
    """Build torchvision's ResNet with one class, or smp's U-Net, with the run's weights; and the image size."""
    experiment = json.loads((run / "experiment.json").read_text())["experiment"]
    if experiment["task"] == "classifier":
        network = getattr(torchvision.models, experiment["encoder"])(num_classes=1)
    else:
        head = {"classes": 1, "dropout": 0.0} if experiment["image_head"] else None
        network = smp.Unet(
            experiment["encoder"], encoder_weights=None, decoder_attention_type=experiment["attention"], classes=1,
            aux_params=head,
        )  # fmt: skip
    network.load_state_dict(load_file(run / "best.safetensors"), strict=True)
    return network.eval().requires_grad_(False), experiment["image_size"]


def batch_of(prepared, image_ids, size):
    """Read prepared PNGs as the network takes them, (n, 3, size, size)."""
    grey = [np.asarray(Image.open(prepared / f"images_{size}" / f"{name}.png")) for name in image_ids]
    pixels = torch.from_numpy(np.stack(grey)).float()[:, None] / 255
    return (pixels - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)


def features_and_scores(network, batch, stage):
    """Return the stage's feature map, from which the rest is computed, and the explained scores, (n,).

    A U-Net's decoder sees the stage twice, by the skip connection and through the deeper stages: both ways count.
    """
    body = network.encoder if isinstance(network, smp.Unet) else network
    stem = torch.nn.Sequential(body.conv1, body.bn1, body.relu)
    first = torch.nn.Sequential(body.maxpool, body.layer1)
    features, x = [], batch
    for number, layers in enumerate((stem, first, body.layer2, body.layer3, body.layer4), start=1):
        x = layers(x)
        if number == stage:
            x.requires_grad_(True)
        features.append(x)
    if body is network:
        return features[stage - 1], network.fc(torch.flatten(network.avgpool(x), 1))[:, 0]
    if network.classification_head is not None:
        return features[stage - 1], network.classification_head(x)[:, 0]
    return features[stage - 1], mean_inside(network.segmentation_head(network.decoder([batch, *features])))


def mean_inside(logits):
    """Return the mean logit, (n,), inside each image's own mask; of all pixels if it is empty (arXiv 2002.11434)."""
    flat = logits.flatten(1)
    inside = (flat > 0).float()
    inside[inside.sum(1) == 0] = 1
    return (flat * inside).sum(1) / inside.sum(1)


def map_of(features, gradients, method):
    """Return signed maps, (n, h, w): arXiv 1610.02391, 1710.11063 and 2011.08891."""
    if method == "hirescam":
        return (features * gradients).sum(1)
    if method == "gradcam":
        weights = gradients.mean((2, 3))
    elif method == "gradcam++":
        # In double precision, where third powers need no scaling.
        g, a = gradients.double(), features.double()
        below = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3
        alpha = torch.where(below != 0, g**2 / torch.where(below != 0, below, torch.ones_like(below)), 0.0)
        weights = (alpha * g.clamp(min=0)).sum((2, 3)).float()
    else:
        raise SystemExit(f"There is no method {method!r}.")
    return torch.einsum("nchw,nc->nhw", features, weights)


def main():
    """Write PyTorch's maps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--maps", type=Path, help="the Keras team's maps; default: RUN/explain/maps.npz")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keras_maps = np.load(arguments.maps or arguments.run / "explain" / "maps.npz", allow_pickle=False)
    image_ids, method, stage = keras_maps["image_ids"], str(keras_maps["method"]), int(keras_maps["stage"])
    network, size = network_of(arguments.run)
    maps, scores = [], []
    for start in range(0, len(image_ids), BATCH):
        batch = batch_of(arguments.prepared, image_ids[start : start + BATCH], size)
        features, score = features_and_scores(network, batch, stage)
        (gradients,) = torch.autograd.grad(score.sum(), features)
        maps.append(map_of(features.detach(), gradients, method).numpy())
        scores.append(score.detach().numpy())
    np.savez_compressed(
        arguments.out,
        image_ids=image_ids,
        maps=np.concatenate(maps),
        logits=np.concatenate(scores),
        method=method,
        stage=stage,
    )
    print(f"{len(image_ids)} maps of torch {torch.__version__}: {arguments.out}")


if __name__ == "__main__":
    main()
