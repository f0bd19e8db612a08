"""PyTorch's answers, computed in PyTorch's own environment and handed over as files.

Run as ``python torch_reference.py TASK FOLDER``: reads ``task.json`` and, where the task has them, ``in.npz`` and
``in.safetensors`` from FOLDER, and writes ``out.npz``, ``out.json`` or other files there. Nothing of
keras_pneumo is imported.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "experiments/torch_team"))
from ladder_networks import PRECISIONS, nhwc, normalise


def classifier(task, folder):
    """torchvision's ResNet."""
    import torchvision

    network = getattr(torchvision.models, task["encoder"])(num_classes=task.get("classes", 1))

    def forward(image):
        # torchvision's forward, a module at a time, so that each feature map can be kept.
        features = [network.relu(network.bn1(network.conv1(image)))]
        x = network.maxpool(features[0])
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            features.append(x)
        logits = network.fc(torch.flatten(network.avgpool(x), 1))
        if not network.training:
            assert torch.equal(logits, network(image))
        return {"image": logits, **{f"feature{index}": nhwc(feature) for index, feature in enumerate(features)}}

    both_modes(network, forward, folder)


def xrayvision(task, folder):
    """A random network of the shape of torchxrayvision's resnet50-res512-all, saved as that library publishes it.

    Its class holds torchvision's ResNet50 with 18 outputs and a stem of one channel, fed pixels from -1024 to 1024.
    """
    import torchvision

    torch.manual_seed(task["seed"])
    network = torchvision.models.resnet50(num_classes=18)
    network.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    grey = torch.from_numpy(np.load(folder / "in.npz")["radiograph"]).permute(0, 3, 1, 2)  # 0 to 1
    pixels, exact = 2048 * grey - 1024, 2048 * grey.double() - 1024
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bn" in name or "downsample.1" in name:
                parameter.add_(torch.rand_like(parameter) - 0.5)
        network.train()
        for _ in range(3):  # statistics that fit the images
            network(pixels)
        network.eval()
        torch.save(network.state_dict(), folder / task["file"])
        kept = {"float32": network(pixels).numpy(), "float64": network.double()(exact).numpy()}
        network.train()
        np.savez(folder / "out.npz", **kept, training=network(exact).numpy())


def timm_classifier(task, folder):
    """timm's ResNet, whose head is left out for no classes; then its pooled features stand for the logits."""
    import timm

    network = timm.create_model(task["encoder"], pretrained=False, num_classes=task["classes"])
    both_modes(network, lambda image: {"image": network(image)}, folder)


def fastai_classifier(task, folder):
    """The model of fastai's learner, without its dropout; see :func:`learner_file` for the file."""
    network = fastai_learner(task["encoder"]).model
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    both_modes(network, lambda image: {"image": network(image)}, folder)


def fastai_learner(encoder):
    """``vision_learner`` with a random start on two made-up images of two categories."""
    from fastai.vision import all as fastai

    made_up = [(torch.zeros(3, 64, 64), torch.tensor(label)) for label in (0, 1)]
    loaders = fastai.DataLoaders.from_dsets(made_up, made_up, bs=2)
    architecture = getattr(fastai, encoder)
    return fastai.vision_learner(
        loaders, architecture, n_out=2, pretrained=False, loss_func=fastai.CrossEntropyLossFlat()
    )


def learner_file(task, folder):
    """A learner as ``learn.save`` writes it, with its optimizer, and the same weights as safetensors."""
    learner = fastai_learner(task["encoder"])
    learner.create_opt()
    learner.path, learner.model_dir = folder, "."
    learner.save("learner")
    state = {name: value.contiguous().numpy() for name, value in learner.model.state_dict().items()}
    save_file(state, folder / "expected.safetensors")


def unet(task, folder):
    """smp's U-Net, with or without attention and image-level head."""
    import segmentation_models_pytorch as smp

    network = smp.Unet(
        task["encoder"],
        encoder_weights=None,
        classes=1,
        decoder_attention_type=task["attention"],
        aux_params={"classes": 1, "dropout": 0.0} if task["image_head"] else None,
    )

    def forward(image):
        result = network(image)
        mask, label = result if task["image_head"] else (result, None)
        return {"mask": nhwc(mask)} | ({} if label is None else {"image": label})

    both_modes(network, forward, folder)


def team_pieces(task, folder):
    """What the PyTorch team's functions (experiments/torch_team) give for given numbers; see test_torch_team.py."""
    from types import SimpleNamespace

    sys.path.insert(0, task["team"])
    import augmentation
    import data
    import losses
    import submission
    import training

    given = np.load(folder / "in.npz")
    kept = {}
    logits, truth = torch.from_numpy(given["logits"]), torch.from_numpy(given["masks"])
    for number, recipe in enumerate(task["recipes"]):
        kept[f"loss{number}"] = losses.mask_loss(recipe, logits, truth).numpy()
    label, logit = torch.from_numpy(given["label"]), torch.from_numpy(given["logit"])
    kept["cross_entropy"] = training.cross_entropy(logit, label, 0.1, 3.0).numpy()
    kept["auroc"] = np.array(submission.auroc(given["label"], given["score"]))
    kept["threshold"] = np.array(submission.fit_threshold(given["label"], given["score"]))
    keys = [tuple(key) for key in task["keys"]]
    numbers = augmentation.draw(task["seed"], keys)
    images = torch.from_numpy(given["images"].transpose(0, 3, 1, 2))
    drawn = torch.from_numpy((given["outlines"] > 0).transpose(0, 3, 1, 2)).float()
    for name, ranges in task["augmentations"].items():
        moved = augmentation.augment(images, drawn, SimpleNamespace(**ranges), numbers)
        kept[f"images.{name}"], kept[f"outlines.{name}"] = (nhwc(tensor).numpy() for tensor in moved)
    kept["cropped"] = nhwc(augmentation.crop(drawn, 32, numbers)).numpy()
    experiment = SimpleNamespace(global_batch_size=8, seed=3, positive_rate=((0, 0.75), (2, 0.5)))
    sampler = data.Draws(torch.from_numpy(given["labels"]), experiment)
    for epoch in (0, 2):
        sampler.epoch = epoch
        batches = list(sampler)
        assert len(batches) == len(sampler)
        kept[f"sizes{epoch}"] = np.array([len(batch) for batch in batches])
        kept[f"keys{epoch}"] = np.array([key for batch in batches for key in batch])
    np.savez(folder / "out.npz", **kept)


def team_arrays(task, folder):
    """The PyTorch team's pixels of a prepared folder by its arrays, where they are valid, and by its PNG files."""
    sys.path.insert(0, task["team"])
    import data

    prepared = Path(task["prepared"])
    kept = {"mapped": np.array(data.mapped_arrays(prepared, 64) is not None)}
    table, _ = data.read_subsets(prepared, 0)
    read_arrays = data.mapped_arrays
    for name in ("arrays", "files"):
        pixels = data.Radiographs(prepared, table["train"], 64, masks=True)
        kept[f"images {name}"], _, kept[f"masks {name}"] = pixels.__getitems__([(row, 0, 0) for row in (3, 0, 5, 1)])
        data.mapped_arrays = lambda *given: None
    data.mapped_arrays = read_arrays
    np.savez(folder / "out.npz", **{name: np.asarray(value) for name, value in kept.items()})


def team_settings(task, folder):
    """How the PyTorch team's programs carry out settings of the network and the process; see test_torch_team.py."""
    import torchvision

    sys.path.insert(0, task["team"])
    import classifier
    import recipe
    import segmenter
    import training

    def read(name):
        return recipe.read_recipe(folder / f"{name}.json", name.partition(".")[0])

    answers = {"deterministic": {}, "precision": {}, "zeros": {}, "weights": {}}
    for name in task["deterministic"]:
        training.set_up(read(name))
        on = torch.are_deterministic_algorithms_enabled()
        answers["deterministic"][name] = [on, torch.backends.cudnn.benchmark]
    for name in task["precision"]:
        answers["precision"][name] = str(training.half_type(read(name)) or torch.float32).removeprefix("torch.")
    images = torch.from_numpy(np.load(folder / "in.npz")["images"])
    for name in task["dropout"]:
        network = (classifier if name.startswith("classifier") else segmenter).build(read(name), None)
        head = network.fc if name.startswith("classifier") else network.classification_head[-2]  # the last is identity
        given = []
        head.register_forward_pre_hook(lambda layer, inputs, given=given: given.append(inputs[0]))
        for mode in (True, False):
            network.train(mode)(images)
        answers["zeros"][name] = [(features == 0).float().mean().item() for features in given]
    for name in task["weights"]:
        settings, asked = read(name), []
        original = getattr(torchvision.models, settings.encoder)

        def pretrained(weights, original=original, asked=asked):
            """Stand for torchvision's weights, which are not downloaded here."""
            network = original()
            torch.nn.init.constant_(network.conv1.weight, 0.25)
            asked.append(weights)
            return network

        setattr(torchvision.models, settings.encoder, pretrained)
        network = (classifier if name.startswith("classifier") else segmenter).build(settings, None)
        setattr(torchvision.models, settings.encoder, original)
        first = getattr(network, "encoder", network).conv1.weight
        answers["weights"][name] = [*asked, first.min().item(), first.max().item()]
    (folder / "out.json").write_text(json.dumps(answers))


def team_trainings(task, folder):
    """Whole trainings by the PyTorch team's programs, of networks of some hundred weights; see test_team_trainings.py.

    Each plan is trained into a folder of its name.
    """
    from types import SimpleNamespace

    sys.path.insert(0, task["team"])
    import classifier
    import recipe
    import segmenter
    import training
    from safetensors.torch import load_file as load_tensors

    class Tiny(torch.nn.Module):
        """The twin of ``crash_lab.tiny``."""

        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 4, 5, stride=4, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(4)
            self.fc = torch.nn.Linear(4, 1)

        def forward(self, image):
            return self.fc(self.bn1(self.conv1(image)).relu().mean((2, 3)))

    class TinySegmenter(torch.nn.Module):
        """The twin of ``test_team_trainings.tiny_segmenter``."""

        def __init__(self, image_head):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 4, 4, stride=4, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(4)
            self.segmentation_head = torch.nn.Conv2d(4, 1, 1)
            self.classification_head = torch.nn.Linear(4, 1) if image_head else None

        def forward(self, image):
            features = self.bn1(self.conv1(image)).relu()
            mask = torch.nn.functional.interpolate(self.segmentation_head(features), scale_factor=4.0)
            if self.classification_head is None:
                return mask
            return mask, self.classification_head(features.mean((2, 3)))

    for name, kind in task["plans"].items():
        settings = recipe.read_recipe(folder / f"{name}.json", kind)
        network = Tiny() if kind == "classifier" else TinySegmenter(settings.image_head)
        network.load_state_dict(load_tensors(folder / f"{name}.safetensors"), strict=True)
        training.set_up(settings)
        compiled = name in task["compiled"]
        given = SimpleNamespace(data=Path(task["data"]), out=folder / name, init=folder / f"{name}.safetensors")
        given.compile, given.masks = compiled, task["masks"]
        (classifier if kind == "classifier" else segmenter).run(network, settings, given)


def real_steps(task, folder):
    """The ladder's steps on real radiographs, from the folder of its inputs."""
    from ladder import Keeper
    from ladder_recipes import Recipes
    from ladder_recipes import real_steps as take_steps

    given = json.loads((folder / "ladder/task.json").read_text())
    take_steps(Recipes(folder / "ladder", given), given, {}, Keeper(folder / "ladder/torch"))


def both_modes(network, forward, folder):
    """Outputs and gradients of the heads' summed cross-entropy, in inference and training mode, float32 and float64.

    Names in out.npz: ``float32.training.image``, ``float64.inference.gradient.conv1.weight``,
    ``float32.buffer.bn1.running_var`` (after one training pass). out.safetensors is the float32 state after that pass.
    """
    state = {name: torch.from_numpy(array.copy()) for name, array in load_file(folder / "in.safetensors").items()}
    given = np.load(folder / "in.npz")
    kept = {"parameters": np.array(sum(parameter.numel() for parameter in network.parameters()))}
    for precision, dtype in PRECISIONS.items():
        network.to(dtype).load_state_dict(state, strict=True)
        for mode in ("inference", "training"):
            network.train(mode == "training")
            network.zero_grad()
            outputs = forward(normalise(given["radiograph"], dtype))
            loss = sum(
                torch.nn.functional.binary_cross_entropy_with_logits(
                    outputs[head], torch.from_numpy(given[head]).to(dtype)
                )
                for head in ("mask", "image")
                if head in outputs
            )
            loss.backward()
            for name, output in outputs.items():
                kept[f"{precision}.{mode}.{name}"] = output.detach().numpy()
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:  # smp's unused attention has none
                    kept[f"{precision}.{mode}.gradient.{name}"] = parameter.grad.numpy().copy()
        for name, buffer in network.named_buffers():
            kept[f"{precision}.buffer.{name}"] = buffer.numpy().copy()
        if precision == "float32":
            save_file({k: v.contiguous().numpy() for k, v in network.state_dict().items()}, folder / "out.safetensors")
    np.savez(folder / "out.npz", **kept)


def schedules(task, folder):
    """Rate (and momentum) at each step of each plan: ``[{"kind", "steps", "arguments"}]``."""
    results = []
    for plan in task["plans"]:
        parameter = torch.nn.Parameter(torch.zeros(1))
        rate = plan.get("rate", 0.1)
        optimizer = torch.optim.SGD([parameter], lr=rate, momentum=0.9)
        scheduler = getattr(torch.optim.lr_scheduler, plan["kind"])(optimizer, **plan["arguments"])
        rates, momenta = [], []
        for step in range(plan["steps"]):
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["momentum"])
            optimizer.step()
            if "figures" in plan:
                scheduler.step(plan["figures"][step])
                rates[-1] = optimizer.param_groups[0]["lr"]
            elif step < plan["steps"] - 1:
                scheduler.step()
        results.append({**plan, "rates": rates, "momenta": momenta})
    (folder / "out.json").write_text(json.dumps(results))


def optimizers(task, folder):
    """The variables after each step, for each plan: an optimizer, its arguments and perhaps a one-cycle schedule."""
    given = np.load(folder / "in.npz")
    outputs = {}
    for index, plan in enumerate(task["plans"]):
        kernel = torch.nn.Parameter(torch.from_numpy(given["kernel"].copy()))
        bias = torch.nn.Parameter(torch.from_numpy(given["bias"].copy()))
        rate, decay = plan["rate"], plan["decay"]
        multiple = plan.get("bias_multiple", 1.0)
        groups = [
            {"params": [kernel], "weight_decay": decay, "lr": rate},
            {"params": [bias], "weight_decay": 0.0, "lr": rate * multiple},
        ]
        optimizer = getattr(torch.optim, plan["kind"])(groups, lr=rate, **plan["arguments"])
        scheduler = None
        if plan["one_cycle"]:
            steps = len(given["kernel_gradients"])
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, rate * multiple], total_steps=steps)
        for step, (of_kernel, of_bias) in enumerate(
            zip(given["kernel_gradients"], given["bias_gradients"], strict=True)
        ):
            kernel.grad, bias.grad = torch.from_numpy(of_kernel.copy()), torch.from_numpy(of_bias.copy())
            if plan.get("clip"):
                torch.nn.utils.clip_grad_norm_([kernel, bias], plan["clip"])
            optimizer.step()
            if scheduler is not None and step < len(given["kernel_gradients"]) - 1:
                scheduler.step()
            outputs[f"{index}.kernel.{step}"] = kernel.detach().numpy().copy()
            outputs[f"{index}.bias.{step}"] = bias.detach().numpy().copy()
    np.savez(folder / "out.npz", **outputs)


def archives(task, folder):
    """Files as torch.save writes them, and the same tensors as safetensors."""
    import collections
    import os

    import torchvision

    torch.manual_seed(1)
    state = collections.OrderedDict(
        [
            ("float", torch.randn(2, 3)),
            ("half", torch.randn(4).half()),
            ("double", torch.randn(2, 2, dtype=torch.float64)),
            ("count", torch.tensor(7)),
            ("parameter", torch.nn.Parameter(torch.randn(3, 2))),
            ("transposed", torch.randn(3, 4).t()),
            ("slice", torch.arange(20.0)[5:9]),
        ]
    )
    torch.save(state, folder / "mixed.pth")
    save_file({k: v.detach().contiguous().numpy() for k, v in state.items()}, folder / "mixed.safetensors")
    network = torchvision.models.resnet18().state_dict()
    torch.save(network, folder / "resnet18.pth")
    save_file({k: v.numpy() for k, v in network.items()}, folder / "resnet18.safetensors")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch '{folder / 'executed'}'",)

    torch.save({"float": torch.randn(2), "evil": Hostile()}, folder / "hostile.pth")


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    globals()[sys.argv[1]](json.loads((where / "task.json").read_text()), where)
