"""PyTorch's part of the ladder: networks, losses, gradients, optimizers, one-cycle plans and twenty steps."""

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torchvision
from losses import lovasz
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from training import cross_entropy

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def normalise(radiograph, dtype=torch.float32):
    """Normalise grey in [0, 1], (n, h, w, 1) as Keras has it, to three normalised channels in PyTorch's order."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=dtype).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=dtype).reshape(3, 1, 1)
    return (nchw(radiograph, dtype) - mean) / std


def nchw(array, dtype=torch.float32):
    """Return an array in Keras's order as a tensor in PyTorch's."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).to(dtype)


def nhwc(tensor):
    """Return a batch of maps in Keras's order; anything else unchanged."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def build(network, encoder):
    """Build torchvision's ResNet with one class, or smp's U-Net with an image-level head."""
    if network == "classifier":
        return getattr(torchvision.models, encoder)(num_classes=1)
    return smp.Unet(encoder, encoder_weights=None, classes=1, aux_params={"classes": 1, "dropout": 0.0})


def heads(outputs):
    """Return logits by head: ``image`` (n, 1), and of a U-Net ``mask`` (n, 1, h, w)."""
    return {"mask": outputs[0], "image": outputs[1]} if isinstance(outputs, tuple) else {"image": outputs}


def layers_of(network, image):
    """Return the output of every layer, in the order of the computation, by its name.

    One ReLU module serves a whole block, so its calls are told apart: all but the last are numbered.
    """
    outputs, calls, hooks = {}, {}, []

    def hook(name):
        def keep(module, inputs, output):
            calls[name] = calls.get(name, 0) + 1
            # A copy: the ReLU that follows works in place.
            copy = output.detach().clone()
            pooled = isinstance(module, nn.AdaptiveAvgPool2d)
            outputs[f"{name}#{calls[name]}"] = (copy.flatten(1) if pooled else nhwc(copy)).numpy()

        return keep

    def entering(name):
        def keep(module, inputs):
            outputs[name] = nhwc(inputs[0].detach().clone()).numpy()

        return keep

    shown = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Linear)
    for name, module in network.named_modules():
        if isinstance(module, shown):
            hooks.append(module.register_forward_hook(hook(name)))
        if name.startswith("decoder.blocks.") and name.endswith(".conv1") and not name.startswith("decoder.blocks.4"):
            hooks.append(module.register_forward_pre_hook(entering(name.removesuffix("conv1") + "concatenate")))
    with torch.no_grad():
        network(image)
    for handle in hooks:
        handle.remove()
    arrays = {}
    for key, array in outputs.items():
        name, _, number = key.partition("#")
        arrays[f"{name}{number}" if number and int(number) < calls[name] else name] = array
    return arrays


def per_image(logits, truth):
    """Return the mask losses of each image: cross-entropy, soft Dice, focal loss, and the recipe's sum."""
    logits, truth = logits.flatten(1), truth.flatten(1)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = torch.sigmoid(logits)
    overlap, total = (probability * truth).sum(1), probability.sum(1) + truth.sum(1)
    right = probability * truth + (1 - probability) * (1 - truth)
    values = {
        "bce": entropy.mean(1),
        "dice": 1 - (2 * overlap + 1) / (total + 1),
        "focal": ((1 - right) ** 2 * entropy).mean(1),
    }
    return values | {"sum": 3 * values["bce"] + values["dice"] + 4 * values["focal"]}


def loss_of(outputs, truths):
    """Return the summed loss of a network's heads."""
    loss = functional.binary_cross_entropy_with_logits(outputs["image"], truths["image"])
    return loss + per_image(outputs["mask"], truths["mask"])["sum"].mean() if "mask" in outputs else loss


def truths_of(given, prefix, dtype=torch.float32):
    """Return the truths of a batch as tensors."""
    return {
        "image": torch.from_numpy(given[f"{prefix}image"]).to(dtype),
        "mask": nchw(given[f"{prefix}mask"], dtype),
    }


def summary_of(tensor):
    """Return number of values, mean, standard deviation, kurtosis."""
    values = tensor.detach().double().flatten()
    mean, std = values.mean(), values.std(correction=0)
    kurtosis = ((values - mean) ** 4).mean() / std**4 if std > 0 else torch.tensor(0.0)
    return np.array([values.numel(), mean.item(), std.item(), kurtosis.item()])


def forward(network, given, state, keep, name, batch):
    """Layers, gradients, running statistics."""
    for precision, dtype in PRECISIONS.items():
        network.to(dtype).load_state_dict(state, strict=True)
        image = normalise(given["image"], dtype)
        if precision == "float32":
            network.eval()
            keep(f"forward.{name}.inference", layers_of(network, image))
            network.train()
            layers = layers_of(network, image)
            keep(f"forward.{name}.training", layers)
            statistics = {key: value.numpy().copy() for key, value in network.state_dict().items() if "running" in key}
            keep(f"statistics.{name}", statistics)
            sizes = {key: array.size // array.shape[-1] for key, array in layers.items() if array.ndim == 4}
            counts = {key: np.array(sizes[key.rsplit(".", 1)[0]]) for key in statistics if key.endswith("_var")}
            keep(f"counts.{name}", counts)
            network.load_state_dict(state, strict=True)
        network.train()
        network.zero_grad()
        few = {f"truth_{head}": given[f"truth_{head}"][:batch] for head in ("image", "mask")}
        loss = loss_of(heads(network(image[:batch])), truths_of(few, "truth_", dtype))
        loss.backward()
        trained = {key: value.grad for key, value in network.named_parameters() if value.grad is not None}
        gradients = {key: gradient.numpy().copy() for key, gradient in trained.items()}
        keep(f"gradients.{name}.{precision}", {"loss": np.array([loss.item()]), **gradients})
    network.to(torch.float32)


def mixed(network, given, state, keep, name):
    """Logits under autocast in float16, in both modes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays = {}
    for mode in ("inference", "training"):
        network.load_state_dict(state, strict=True)
        network.to(device).train(mode == "training")
        with torch.no_grad(), torch.autocast(device, torch.float16):
            outputs = heads(network(normalise(given["image"]).to(device)))
        arrays |= {f"{head}, {mode} mode": nhwc(outputs[head]).double().cpu().numpy() for head in sorted(outputs)}
    network.to("cpu")
    keep(f"mixed.{name}", arrays)


def step(network, state, gradients, plan, keep, name):
    """Two steps, the second with half the gradients at half the rate; no decay on vectors."""
    for kind in ("sgd", "adamw"):
        network.load_state_dict(state, strict=True)
        parameters = dict(network.named_parameters())
        groups = [
            {"params": [value for value in parameters.values() if value.ndim > 1], "weight_decay": plan["decay"][kind]},
            {"params": [value for value in parameters.values() if value.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = (
            torch.optim.SGD(groups, lr=1.0, momentum=0.9) if kind == "sgd" else torch.optim.AdamW(groups, lr=1.0)
        )
        for rate, share in zip(plan[kind], plan["shares"], strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for key, parameter in parameters.items():
                parameter.grad = share * gradients[key]
            optimizer.step()
        moved = {key: (value.detach() - state[key]).numpy() for key, value in parameters.items()}
        keep(f"step.{name}.{kind}", moved)


def one_cycle(optimizer, plan):
    """Make torch's OneCycleLR of a plan."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=plan["peak"],
        total_steps=plan["steps"],
        pct_start=plan.get("rise", 0.3),
        div_factor=plan.get("div_factor", 25.0),
        final_div_factor=plan.get("final_div_factor", 1e4),
        base_momentum=plan["momentum"][0],
        max_momentum=plan["momentum"][1],
    )


def schedules(plans, keep):
    """Rate and momentum at every step."""
    values = {}
    for number, plan in enumerate(plans):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        scheduler = one_cycle(optimizer, plan)
        rates, momenta = [], []
        for index in range(plan["steps"]):
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["momentum"])
            optimizer.step()
            if index < plan["steps"] - 1:
                scheduler.step()
        values |= {f"plan {number + 1}: rate": np.array(rates), f"plan {number + 1}: momentum": np.array(momenta)}
    keep("schedule", values)


def training(network, given, state, plan, keep, name):
    """Steps of SGD with momentum under OneCycleLR."""
    network.load_state_dict(state, strict=True)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=plan["peak"], momentum=0.9)
    scheduler = one_cycle(optimizer, plan)
    losses = []
    for index in range(plan["steps"]):
        batch = {f"truth_{head}": given[f"{name}_{head}"][index] for head in ("image", "mask")}
        loss = loss_of(heads(network(normalise(given[f"{name}_images"][index]))), truths_of(batch, "truth_"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if index < plan["steps"] - 1:
            scheduler.step()
        losses.append(loss.item())
    keep(f"training.{name}", {f"step {index}": np.array([value]) for index, value in enumerate(losses)})


def compute(folder, task, given, keep):
    """Compute every check of networks."""
    logits, masks = torch.from_numpy(given["loss_logits"]), torch.from_numpy(given["loss_masks"])
    labels = torch.from_numpy(given["loss_labels"])
    values = per_image(logits, masks)
    values["lovasz"] = lovasz(logits.flatten(1), masks.flatten(1))
    image = logits[:, 0, 0]
    values["image"] = functional.binary_cross_entropy_with_logits(image, labels, reduction="none").mean(1)
    values["image, smoothed and weighted"] = cross_entropy(image, labels[:, 0], *task["image_loss"])
    keep("loss", {name: value.numpy() for name, value in values.items()})
    schedules(task["one_cycles"], keep)
    for name in task["networks"]:
        torch.manual_seed(task["seed"] + 3)
        network = build(name, task["encoder"])
        summaries = {key: summary_of(value) for key, value in network.state_dict().items() if "num_batches" not in key}
        keep(f"initial.{name}", summaries)
        weights, start, gradients = (
            load_file(folder / f"{name}.{which}.safetensors") for which in ("weights", "start", "gradients")
        )
        forward(network, given, weights, keep, name, task["gradient_batch"])
        if task["mixed"]:
            mixed(network, given, weights, keep, name)
        step(network, weights, gradients, task["optimizers"], keep, name)
        training(network, given, start, task["training"][name], keep, name)
