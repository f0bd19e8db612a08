"""Which of TensorFlow's strategies a training takes, from what was wished for and what is there.

In: the user's wish, the environment and the number of GPUs. Out: a choice in words, which ``distribution`` carries out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from keras_pneumo.errors import PneumoError
from keras_pneumo.training.cluster import Cluster, find_cluster

Kind = Literal["one", "mirrored", "multiworker"]
CHOICES = ("auto", "one", "mirrored", "multiworker")


@dataclass(frozen=True)
class Choice:
    """What a training would run on here, and in words."""

    kind: Kind
    text: str
    cluster: Cluster | None = None


def cluster_for(wanted: str, environ: Mapping[str, str]) -> Cluster | None:
    """The workers that a command would be one of, told without TensorFlow's devices; None where it is alone.

    Raises:
        PneumoError: the variables do not fit together; see :func:`cluster.find_cluster`.
    """
    return find_cluster(environ) if wanted in ("auto", "multiworker") else None


def choose(wanted: str, environ: Mapping[str, str], gpus: int, replicas: int | None = None) -> Choice:
    """Which strategy a training takes: for ``auto`` several workers if there are any, else all GPUs, else one device.

    Args:
        wanted: one of :data:`CHOICES`.
        environ: where ``TF_CONFIG`` and Slurm's variables are looked for.
        gpus: how many GPUs this process sees.
        replicas: how many devices to use of this host; without GPUs, and on one host, the CPU is divided into so many.
            Default: all GPUs.

    Raises:
        PneumoError: the wish cannot be met here.
    """
    if wanted not in CHOICES:
        raise PneumoError(f"There is no strategy {wanted!r}. Choose one of {', '.join(CHOICES)}.")
    cluster = cluster_for(wanted, environ)
    if wanted == "multiworker" and cluster is None:
        raise PneumoError(
            "--strategy multiworker needs several workers, named in TF_CONFIG or by srun; neither names any. Use "
            "--strategy auto on one host."
        )
    if gpus and replicas is not None and replicas > gpus:
        raise PneumoError(f"--replicas {replicas} is more than the {gpus} GPUs here.")
    if replicas is not None and replicas > 1 and wanted == "one":
        raise PneumoError(f"--strategy one is one device, not {replicas}. Leave out --replicas, or use mirrored.")
    if replicas is not None and replicas > 1 and cluster is not None and not gpus:
        raise PneumoError(
            f"--replicas {replicas}: a worker without GPUs is one device. Leave it out, or start more workers."
        )
    local = min(replicas or gpus, gpus) if gpus else replicas or 1
    devices = f"{local} GPU{'s' * (local > 1)}" if gpus else f"CPU divided in {local}" if local > 1 else "CPU"
    if cluster is not None:
        link = "NCCL" if gpus else "ring"
        return Choice("multiworker", f"{len(cluster.workers)} workers of {cluster.source}, {devices}, {link}", cluster)
    if wanted == "mirrored" and local == 1 and not gpus:
        raise PneumoError("--strategy mirrored needs several devices; here is one CPU. --replicas 2 divides it in two.")
    if wanted == "mirrored" or (wanted == "auto" and local > 1):
        return Choice("mirrored", f"mirrored, {devices}")
    return Choice("one", "one device, GPU:0" if gpus else "one device, CPU:0")
