"""Which workers a training has and how they are reached, said before TensorFlow waits for any of them.

In: ``TF_CONFIG``, or the variables of a Slurm job step. Out: the workers' addresses and which of them this process is,
checked; and the certainty that all of them are there, within a time limit. TensorFlow itself would wait for minutes, or
for ever, and then name no one.

Which of TensorFlow's strategies a training takes, from what was wished for and what is there.

In: the user's wish, the environment and the number of GPUs. Out: a choice in words, which ``distribution`` carries out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from keras_pneumo.errors import AGAIN, PneumoError, Stopped

WAIT_SECONDS = 120.0
"""How long workers wait for one another to start; a cluster's nodes rarely start at the same moment."""

GREETING = b"keras-pneumo worker "
FIRST_PORT, PORTS = 20000, 10000
"""Slurm jobs take a port from this range by their number, so that two jobs on one node do not meet."""


@dataclass(frozen=True)
class Cluster:
    """The workers' addresses (``host:port``), in order, and the number of this one; number 0 is the chief."""

    workers: tuple[str, ...]
    index: int
    source: str
    """What said so, for messages."""

    def tf_config(self) -> str:
        """The same as ``TF_CONFIG``."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """The cluster of ``TF_CONFIG`` or of a Slurm step of several tasks; None where there is one process only.

    Raises:
        PneumoError: the variables contradict themselves or cannot be read.
    """
    if environ.get("TF_CONFIG"):
        found = _from_tf_config(environ["TF_CONFIG"])
        return found if len(found.workers) > 1 else None
    if environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _from_slurm(environ)
    return None


def _from_tf_config(text: str) -> Cluster:
    hint = (
        'It should look like {"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
        '"task": {"type": "worker", "index": 0}}.'
    )
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        workers = [str(one) for one in [*cluster.get("chief", []), *cluster["worker"]]]
        index = int(task["index"]) + (len(cluster.get("chief", [])) if task["type"] == "worker" else 0)
        kind = task["type"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PneumoError(f"TF_CONFIG cannot be read ({type(error).__name__}: {error}). {hint}") from None
    if kind not in ("worker", "chief") or set(cluster) - {"worker", "chief"}:
        raise PneumoError(f"TF_CONFIG names other tasks than workers (and a chief), which is all there is here. {hint}")
    return _checked(Cluster(tuple(workers), index, "TF_CONFIG"), hint)


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    """Through TensorFlow's own resolver; its ports come from the job's number, its GPUs are left to Slurm."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    hint = "Start the training with srun, inside a job; see experiments/slurm/."
    if missing := [name for name in names if not environ.get(name)]:
        raise PneumoError(f"Slurm's variables {', '.join(missing)} are not set, though others are. {hint}")
    import tensorflow as tf

    try:
        job = int(re.sub(r"\D", "", environ.get("SLURM_JOB_ID", "")) or 0)
        # One GPU a task is only what the resolver counts with; which GPUs a task sees is Slurm's (--gpus-per-task).
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=10**6, gpus_per_task=1, auto_set_gpu=False
        )
        # Not cluster_spec(): it sorts the hosts by name, so that node10 comes before node2, and Slurm's ranks do not.
        tasks = resolver._resolve_task_configuration()
        first = FIRST_PORT + job % PORTS
        workers = [f"{host}:{first + number}" for host, count in tasks.items() for number in range(count)]
        index = int(environ["SLURM_PROCID"])
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        values = ", ".join(f"{name}={environ.get(name)}" for name in names)
        raise PneumoError(f"Slurm's variables do not fit together ({error}): {values}. {hint}") from None
    return _checked(Cluster(tuple(workers), index, "Slurm's variables"), hint)


def _checked(cluster: Cluster, hint: str) -> Cluster:
    for address in cluster.workers:
        host, _, port = address.rpartition(":")
        if not _is_name(host) or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
            raise PneumoError(f"{cluster.source}: {address!r} is no address of the form host:port. {hint}")
    if len(set(cluster.workers)) < len(cluster.workers):
        raise PneumoError(f"{cluster.source}: two workers have the same address. {hint}")
    if not 0 <= cluster.index < len(cluster.workers):
        raise PneumoError(
            f"{cluster.source}: this is worker {cluster.index}, but the workers are numbered 0 to "
            f"{len(cluster.workers) - 1}. {hint}"
        )
    return cluster


def _is_name(host: str) -> bool:
    """Whether a host's name can be asked for at all; an empty part in it, or one too long, cannot."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def wait_for_all(
    cluster: Cluster, seconds: float = WAIT_SECONDS, tell: Callable[[str], None] = lambda text: None
) -> None:
    """Return when every worker has been heard and has heard this one.

    Args:
        cluster: all workers.
        seconds: the time limit.
        tell: is told whom this worker waits for.

    Raises:
        PneumoError: the worker's own port is in use, or another calls itself by a number that is not its own.
        Stopped: some did not come within the time limit; one whose host is unknown is waited for too, since a cluster's
            names may come later than its nodes.
    """
    others = set(range(len(cluster.workers))) - {cluster.index}
    heard: set[int] = set()  # by us
    heard_us: set[int] = set()
    stop = threading.Event()
    listener = _listen(cluster)
    thread = threading.Thread(target=_answer, args=(listener, cluster.index, heard_us, stop), daemon=True)
    thread.start()
    started, spoke = time.monotonic(), time.monotonic() - 4.5
    try:
        while heard != others or not heard_us >= others:
            for number in sorted(others - heard):
                if _greet(cluster, number):
                    heard.add(number)
            now = time.monotonic()
            lacking = ", ".join(f"{n} ({cluster.workers[n]})" for n in sorted(others - (heard & heard_us)))
            if lacking and now - started > seconds:
                raise Stopped(
                    f"Worker {cluster.index} has waited {seconds:.0f} s for worker {lacking}, named in "
                    f"{cluster.source}, "
                    "which did not come. Look at that worker's own output; check that its host can be reached at that "
                    "port; start all workers again. (--wait-for-workers SECONDS waits longer.)",
                    AGAIN,
                )
            if lacking and now - spoke > 5.0:
                spoke = now
                tell(f"Worker {cluster.index} of {len(cluster.workers)} waits for worker {lacking}.")
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join(timeout=5)
        listener.close()


def _listen(cluster: Cluster) -> socket.socket:
    host, _, port = cluster.workers[cluster.index].rpartition(":")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", int(port)))
        listener.listen(len(cluster.workers))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PneumoError(
                f"Port {port}, which {cluster.source} gives worker {cluster.index} ({host}), is in use here. "
                "Another run, "
                "or what is left of one, holds it: end that, or choose another port."
            ) from None
        raise PneumoError(f"Port {port} of {host} cannot be listened to: {error.strerror}.") from None
    listener.settimeout(0.2)
    return listener


def _answer(listener: socket.socket, index: int, heard_us: set[int], stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError, ValueError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(2.0)
                text = connection.recv(64)
                if text.startswith(GREETING):
                    connection.sendall(GREETING + str(index).encode())
                    heard_us.add(int(text.removeprefix(GREETING)))


def _greet(cluster: Cluster, number: int) -> bool:
    host, _, port = cluster.workers[number].rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2.0) as connection:
        connection.settimeout(2.0)
        connection.sendall(GREETING + str(cluster.index).encode())
        answer = connection.recv(64)
        if answer.startswith(GREETING) and answer != GREETING + str(number).encode():
            raise PneumoError(
                f"{cluster.workers[number]} answers as worker {answer.removeprefix(GREETING).decode()}, but "
                f"{cluster.source} calls it worker {number}. Give all workers the same list, and each its own number."
            )
        return answer.startswith(GREETING)
    return False


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
