"""Simulates a training on many GPUs: what is read, sent and kept, how long a step takes, and what limits it.

    python experiments/benchmarks/scale_simulation.py [--radiographs 1000000] [--image-size 512] [--gpus 1 8 16 64]
        [--per-gpu 16] [--images-per-core 860] [--seed 0]

Simple arithmetic for the parts of a step; seeded random numbers for what varies: each replica's time in each step (all
wait for the slowest) and failures of a GPU (all go back to the last checkpoint). No such machine was there to measure.
So each figure below says where it is from: measured here, counted from the graph of the step (``messages_of`` in
``replicas.py``), published, or assumed. The three tables that it prints stand in ``docs/scale.md``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Network:
    """What a network sends and keeps: a ResNet50 classifier."""

    parameters: int = 23_510_081
    """Learnt; counted."""
    gradient_messages: int = 3
    """Of up to 32 MiB and a tensor; counted."""
    batch_norms: int = 53
    batch_norm_channels: int = 26_560
    """Of all BatchNorms together; counted."""
    batch_norm_messages: int = 2
    """Of each BatchNorm in a step: one forwards, one backwards; counted. Keras 3.15's own: 6."""
    optimizer_copies: int = 3
    """Moments and average beside the weights (AdamW, EMA)."""

    @property
    def gradient_bytes(self) -> int:
        """Of one replica in a step: a float32 for each parameter, and the loss and the stop request."""
        return 4 * (self.parameters + 2)

    @property
    def batch_norm_bytes(self) -> int:
        """Of one replica in a step: float64 counts, sums and squares forwards, two float32 gradients backwards."""
        return 8 * (2 * self.batch_norm_channels + self.batch_norms) + 4 * 2 * self.batch_norm_channels

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint: the weights, and what the optimizer keeps for each."""
        return 4 * self.parameters * (1 + self.optimizer_copies)


@dataclass(frozen=True)
class Plan:
    """The training."""

    radiographs: int = 1_000_000
    image_size: int = 512
    gpus: int = 64
    per_gpu: int = 16
    """Images of a batch on each GPU; the global batch grows with the GPUs."""
    epochs: int = 20
    held_out: float = 0.1
    """Share of the radiographs that validates after each epoch."""
    checkpoint_seconds: float = 300.0
    restart_seconds: float = 300.0
    """From a failure to the next step: start, tracing, loading, the first batches. Assumed."""


@dataclass(frozen=True)
class Host:
    """One host and its links."""

    gpus: int = 8
    cores: int = 96
    memory_bytes: float = 1e12
    gpu_images_per_second: float = 2470.0 * (224 / 512) ** 2
    """Training at 512 px in mixed precision: 2,470 at 224 px on one A100 (NVIDIA's figure), by the number of pixels."""
    validation_speed: float = 3.0
    """Times the speed of training, since the backward pass takes twice the forward pass."""
    images_per_core: float = 860.0
    """Input with augmentation at 512 px; measured here on one AVX-512 core before this version."""
    storage_bytes_per_second: float = 2e9
    """Random reads of whole images from the shared disk, by one host. Assumed; local NVMe reads three times as fast."""
    link_bytes_per_second: float = 25e9
    """From a host to the next (200 Gbit/s); between the GPUs of one host ten times as fast. Assumed."""
    link_seconds: float = 10e-6
    """Until a message arrives at the next host; within a host a third of it. Assumed."""
    jitter: float = 0.03
    """Standard deviation of the logarithm of a replica's time of computing. Assumed."""
    gpu_hours_between_failures: float = 50_000.0
    """Of one GPU with its share of host and network: about that of Llama 3's training (419 in 54 days of 16,384)."""


def ring_seconds(size: float, replicas: int, bytes_per_second: float, seconds: float) -> float:
    """The time of an all-reduce in a ring: every replica sends 2 (n - 1) / n of the bytes in 2 (n - 1) turns."""
    if replicas == 1:
        return 0.0
    return 2 * (replicas - 1) * (size / replicas / bytes_per_second + seconds)


def tree_seconds(size: float, replicas: int, bytes_per_second: float, seconds: float) -> float:
    """The time of an all-reduce in a tree: up and down its levels, the bytes once each way."""
    if replicas == 1:
        return 0.0
    return 2 * (math.ceil(math.log2(replicas)) * seconds + size / bytes_per_second)


def message_seconds(size: float, plan: Plan, host: Host) -> float:
    """The time of an all-reduce over all GPUs, the better of ring and tree, by the slowest link."""
    inside = plan.gpus <= host.gpus
    speed = host.link_bytes_per_second * (10 if inside else 1)
    latency = host.link_seconds / (3 if inside else 1)
    return min(ring_seconds(size, plan.gpus, speed, latency), tree_seconds(size, plan.gpus, speed, latency))


@dataclass(frozen=True)
class Step:
    """Seconds of a step, and what a host does for it."""

    computing: float
    batch_norm: float
    gradients: float
    augmenting: float
    """By all cores of a host, beside the GPUs."""
    reading: float
    """What is not in memory, from the shared disk, beside the GPUs."""

    @property
    def gpu(self) -> float:
        """What the GPUs take: with a BatchNorm that learns, messages wait for it and it for them, so all adds up."""
        return self.computing + self.batch_norm + self.gradients

    @property
    def seconds(self) -> float:
        """The whole: input runs ahead beside it, so the slower of the two counts."""
        return max(self.gpu, self.augmenting, self.reading)

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        parts = {"GPU": self.gpu, "input on the CPU": self.augmenting, "reading": self.reading}
        return max(parts, key=lambda name: parts[name])


def step_of(network: Network, plan: Plan, host: Host) -> Step:
    """The parts of a step of a plan."""
    messages = network.batch_norms * network.batch_norm_messages
    mean_size = network.batch_norm_bytes / max(messages, 1)
    on_host = min(plan.gpus, host.gpus) * plan.per_gpu
    array = plan.radiographs * plan.image_size**2
    missing = max(0.0, 1 - 0.8 * host.memory_bytes / array)  # order is random, so every image is as likely in memory
    return Step(
        computing=plan.per_gpu / host.gpu_images_per_second,
        batch_norm=messages * message_seconds(mean_size, plan, host),
        gradients=network.gradient_messages
        * message_seconds(network.gradient_bytes / network.gradient_messages, plan, host),
        augmenting=on_host / (host.cores * host.images_per_core),
        reading=missing * on_host * plan.image_size**2 / host.storage_bytes_per_second,
    )


@dataclass(frozen=True)
class Training:
    """A simulated training."""

    step: Step
    hours: float
    epoch_minutes: float
    """Of training alone."""
    waiting_hours: float
    """Of all replicas for the slowest one."""
    validation_hours: float
    checkpoints: int
    failures: int
    lost_hours: float
    """By failures: work since the last checkpoint, and restarts."""
    images_per_second: float
    """Of the whole training, validation and failures included."""


def simulate(network: Network, plan: Plan, host: Host, seed: int = 0) -> Training:
    """Simulate a training from its first step to its last.

    Args:
        network: what is trained.
        plan: on what, and how.
        host: of which there are as many as the plan's GPUs need.
        seed: of the replicas' times and of failures.
    """
    generator = np.random.default_rng(seed)
    step = step_of(network, plan, host)
    learned = int(plan.radiographs * (1 - plan.held_out))
    steps = learned // (plan.per_gpu * plan.gpus) * plan.epochs
    beside = max(step.augmenting, step.reading)
    working = waiting = 0.0
    for start in range(0, steps, 10_000):
        count = min(10_000, steps - start)
        slowest = step.computing * np.exp(generator.normal(0, host.jitter, (count, plan.gpus))).max(axis=1)
        seconds = np.maximum(slowest + step.batch_norm + step.gradients, beside)
        working += float(seconds.sum())
        waiting += float(seconds.sum()) - count * step.seconds
    validation = plan.epochs * plan.radiographs * plan.held_out
    validation /= plan.gpus * host.gpu_images_per_second * host.validation_speed
    between = host.gpu_hours_between_failures * 3600 / plan.gpus
    failures, lost, until = 0, 0.0, working + validation
    clock = generator.exponential(between)
    while clock < until:
        since_checkpoint = generator.uniform(0, plan.checkpoint_seconds)
        failures, lost = failures + 1, lost + since_checkpoint + plan.restart_seconds
        until += since_checkpoint + plan.restart_seconds
        clock += generator.exponential(between)
    return Training(
        step, until / 3600, working / plan.epochs / 60, waiting / 3600, validation / 3600,
        int(working // plan.checkpoint_seconds), failures, lost / 3600, plan.epochs * learned / until,
    )  # fmt: skip


def growth_table(network: Network, plan: Plan, host: Host, gpus: list[int], seed: int = 0) -> str:
    """A row for each number of GPUs, in Markdown; the batch of each GPU stays the same."""
    heads = ["GPUs", "step: computing", "BatchNorm's messages", "gradient", "input on the CPU", "reading", "limit",
             "images/s", "of linear", "epoch", "whole training", "failures"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for count in gpus:
        training = simulate(network, replace(plan, gpus=count), host, seed)
        step, linear = training.step, training.images_per_second / (count * host.gpu_images_per_second)
        milliseconds = (step.computing, step.batch_norm, step.gradients, step.augmenting, step.reading)
        cells = [str(count), *(f"{1000 * part:.1f} ms" for part in milliseconds), step.limit,
                 f"{training.images_per_second:,.0f}", f"{linear:.2f}", f"{training.epoch_minutes:.1f} min",
                 f"{training.hours:.1f} h", str(training.failures)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def load_table(network: Network, plan: Plan, host: Host, seed: int = 0) -> str:
    """What is read, by whom, how often, and what is sent and kept, in Markdown."""
    training = simulate(network, plan, host, seed)
    step, hosts = training.step, math.ceil(plan.gpus / host.gpus)
    image = plan.image_size**2
    learned = plan.radiographs * (1 - plan.held_out)
    wanted = min(plan.gpus, host.gpus) * plan.per_gpu / step.gpu
    messages = network.batch_norms * network.batch_norm_messages
    rows = [
        ("one image, uint8", f"{image / 1e3:,.0f} kB"),
        ("the array of this size, on the shared disk", f"{plan.radiographs * image / 1e9:,.0f} GB"),
        ("its share in a host's memory (page cache, 80% of the memory at most)",
         f"{min(1, 0.8 * host.memory_bytes / (plan.radiographs * image)):.0%}"),
        (f"read by each of {hosts} hosts in an epoch, once an image", f"{learned / hosts * image / 1e9:,.0f} GB"),
        ("images/s that a host's GPUs take", f"{wanted:,.0f}"),
        ("bytes/s of them, where nothing is in memory", f"{wanted * image / 1e6:,.0f} MB/s"),
        ("cores that augment them", f"{wanted / host.images_per_core:.0f} of {host.cores}"),
        ("gradient of one replica in a step", f"{network.gradient_bytes / 1e6:.1f} MB in {network.gradient_messages}"),
        ("BatchNorm of one replica in a step", f"{network.batch_norm_bytes / 1e6:.2f} MB in {messages}"),
        ("through a host's link in a step, each way",
         f"{2 * (network.gradient_bytes + network.batch_norm_bytes) * (plan.gpus - 1) / plan.gpus / 1e6:,.0f} MB"),
        ("waiting for the slowest replica", f"{training.waiting_hours / training.hours:.0%} of the time"),
        ("validation", f"{training.validation_hours / training.hours:.0%} of the time"),
        (f"checkpoints, every {plan.checkpoint_seconds:.0f} s",
         f"{training.checkpoints} of {network.checkpoint_bytes / 1e6:,.0f} MB, by worker 0"),
        ("hours between failures", f"{host.gpu_hours_between_failures / plan.gpus:,.0f}"),
        ("lost by one failure", f"{(plan.checkpoint_seconds / 2 + plan.restart_seconds) / 60:.1f} min"),
    ]  # fmt: skip
    return "\n".join(["| what | how much |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def limits_table(network: Network, plan: Plan, host: Host, seed: int = 0) -> str:
    """What changes when one thing is worse or better than planned, in Markdown: a row each."""
    quarter = (plan.image_size / 1024) ** 2
    larger = replace(
        host,
        gpu_images_per_second=host.gpu_images_per_second * quarter,
        images_per_core=host.images_per_core * quarter,
    )
    slow_disk = {"memory_bytes": 128e9, "storage_bytes_per_second": 2e8}
    changes = [
        ("as planned", network, plan, host),
        ("BatchNorm by Keras's six messages", replace(network, batch_norm_messages=6), plan, host),
        ("BatchNorm frozen", replace(network, batch_norms=0), plan, host),
        ("64 images on each GPU", network, replace(plan, per_gpu=64), host),
        ("links of 10 Gbit/s", network, plan, replace(host, link_bytes_per_second=1.25e9, link_seconds=30e-6)),
        ("hosts of 2 cores", network, plan, replace(host, cores=2)),
        ("hosts of 128 GB, a disk of 0.2 GB/s for each", network, plan, replace(host, **slow_disk)),
        ("1024 px", network, replace(plan, image_size=1024), larger),
        (
            "1024 px, hosts of 128 GB, such a disk",
            network,
            replace(plan, image_size=1024),
            replace(larger, **slow_disk),
        ),
    ]
    heads = ["change", "GPU part of a step", "BatchNorm's messages", "input on the CPU", "reading", "limit", "images/s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, *parts in changes:
        training = simulate(*parts, seed)
        step = training.step
        milliseconds = (step.gpu, step.batch_norm, step.augmenting, step.reading)
        cells = [name, *(f"{1000 * part:.1f} ms" for part in milliseconds), step.limit,
                 f"{training.images_per_second:,.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the three tables."""
    plan, host = Plan(), Host()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--radiographs", type=int, default=plan.radiographs)
    parser.add_argument("--image-size", type=int, default=plan.image_size)
    parser.add_argument("--per-gpu", type=int, default=plan.per_gpu)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--images-per-core", type=float, default=host.images_per_core)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    plan = replace(plan, radiographs=args.radiographs, image_size=args.image_size, per_gpu=args.per_gpu)
    scale = (512 / args.image_size) ** 2
    host = replace(
        host,
        gpu_images_per_second=host.gpu_images_per_second * scale,
        images_per_core=args.images_per_core * scale,
    )
    print(growth_table(Network(), plan, host, args.gpus, args.seed))
    print()
    plan = replace(plan, gpus=max(args.gpus))
    print(load_table(Network(), plan, host, args.seed))
    print()
    print(limits_table(Network(), plan, host, args.seed))


if __name__ == "__main__":
    main()
