"""Do a classifier's heat maps differ when PyTorch makes them? The twin's, for `keras-pneumo explain --compare`.

Reads a run's weights into torchvision's ResNet (strictly), and from the maps.npz of `keras-pneumo explain` which
images, method and stage are wanted; writes the same of its own. The formulas are written out here once more and nothing
of keras_pneumo is imported, so that one mistake cannot stand on both sides.

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
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 16


def network_of(run):
    """torchvision's ResNet with one class and the run's weights."""
    experiment = json.loads((run / "experiment.json").read_text())["experiment"]
    if experiment["task"] != "classifier":
        raise SystemExit(f"{run} is no classifier; torchvision's ResNet is a classifier's twin.")
    network = getattr(torchvision.models, experiment["encoder"])(num_classes=1)
    network.load_state_dict(load_file(run / "best.safetensors"), strict=True)
    return network.eval(), experiment["image_size"]


def batch_of(prepared, image_ids, size):
    """Prepared PNGs as the network takes them, (n, 3, size, size)."""
    grey = [np.asarray(Image.open(prepared / f"images_{size}" / f"{name}.png")) for name in image_ids]
    pixels = torch.from_numpy(np.stack(grey)).float()[:, None] / 255
    return (pixels - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)


def features_and_logits(network, batch, stage):
    """The stage's feature map, from which the rest is computed, and the logits, (n,)."""
    x = network.relu(network.bn1(network.conv1(batch)))
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    if stage > 1:
        x = network.maxpool(x)
        for layer in stages[: stage - 1]:
            x = layer(x)
    features = x.detach().requires_grad_(True)
    x = features
    if stage == 1:
        x = network.maxpool(x)
    for layer in stages[stage - 1 :]:
        x = layer(x)
    return features, network.fc(torch.flatten(network.avgpool(x), 1))[:, 0]


def map_of(features, gradients, method):
    """Signed maps, (n, h, w): arXiv 1610.02391, 1710.11063 and 2011.08891."""
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
    """Write the twin's maps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--maps", type=Path, help="ours; default: RUN/explain/maps.npz")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    ours = np.load(arguments.maps or arguments.run / "explain" / "maps.npz", allow_pickle=False)
    image_ids, method, stage = ours["image_ids"], str(ours["method"]), int(ours["stage"])
    network, size = network_of(arguments.run)
    maps, logits = [], []
    for start in range(0, len(image_ids), BATCH):
        features, answer = features_and_logits(
            network, batch_of(arguments.prepared, image_ids[start : start + BATCH], size), stage
        )
        (gradients,) = torch.autograd.grad(answer.sum(), features)
        maps.append(map_of(features.detach(), gradients, method).numpy())
        logits.append(answer.detach().numpy())
    np.savez_compressed(
        arguments.out,
        image_ids=image_ids,
        maps=np.concatenate(maps),
        logits=np.concatenate(logits),
        method=method,
        stage=stage,
    )
    print(f"{len(image_ids)} maps of torch {torch.__version__}: {arguments.out}")


if __name__ == "__main__":
    main()
