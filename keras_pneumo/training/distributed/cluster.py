"""The workers of a training and how they are reached, and which of TensorFlow's strategies the training takes.

In: the strategy that the user asked for, the environment (``TF_CONFIG``, or the variables of a Slurm job step) and the
number of GPUs. Out: the strategy in words; the workers' addresses, checked, and which of them this process is; and the
certainty that all of them are there, within a time limit. TensorFlow itself would wait for minutes or for ever, and
would not say for which worker. ``strategy`` then makes the devices ready.
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
"""How long workers wait for each other; the nodes of a cluster rarely start at the same moment."""

GREETING = b"keras-pneumo worker "
FIRST_PORT, PORTS = 20000, 10000
"""A Slurm job takes its ports from this range by its number, so that two jobs on one node have different ones."""


Kind = Literal["one", "mirrored", "multiworker"]
CHOICES = ("auto", "one", "mirrored", "multiworker")


@dataclass(frozen=True)
class Cluster:
    """The addresses of all workers (``host:port``), in order, and the number of this one; number 0 is the chief."""

    workers: tuple[str, ...]
    index: int
    source: str
    """Where the addresses come from, for messages."""

    def tf_config(self) -> str:
        """The text of ``TF_CONFIG`` for this worker."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})


@dataclass(frozen=True)
class StrategyChoice:
    """The strategy that a training takes, also in words, and its workers."""

    kind: Kind
    description: str
    cluster: Cluster | None = None


def choose_strategy(
    requested: str, environ: Mapping[str, str], gpus: int, replicas: int | None = None
) -> StrategyChoice:
    """Choose the strategy: for ``auto`` several workers if there are any, else all GPUs, else one device.

    Args:
        requested: one of :data:`CHOICES`.
        environ: the environment, with ``TF_CONFIG`` or Slurm's variables.
        gpus: how many GPUs this process sees.
        replicas: how many devices to use of this host; without GPUs, and on one host, the CPU is divided into so many.
            Default: all GPUs.

    Raises:
        PneumoError: the strategy cannot be had here.
    """
    if requested not in CHOICES:
        raise PneumoError(f"There is no strategy {requested!r}. Choose one of {', '.join(CHOICES)}.")
    cluster = cluster_for(requested, environ)
    if requested == "multiworker" and cluster is None:
        raise PneumoError(
            "--strategy multiworker needs several workers, but neither TF_CONFIG nor srun names any. On one host, use "
            "--strategy auto."
        )
    if gpus and replicas is not None and replicas > gpus:
        raise PneumoError(f"--replicas {replicas} is more than the {gpus} GPUs here. Give at most that many.")
    if replicas is not None and replicas > 1 and requested == "one":
        raise PneumoError(f"--strategy one is one device, not {replicas}. Leave out --replicas, or use mirrored.")
    if replicas is not None and replicas > 1 and cluster is not None and not gpus:
        raise PneumoError(
            f"--replicas {replicas}: a worker without GPUs is one device. Leave it out, or start more workers."
        )
    local = min(replicas or gpus, gpus) if gpus else replicas or 1
    devices = f"{local} GPU{'s' * (local > 1)}" if gpus else f"CPU divided in {local}" if local > 1 else "CPU"
    if cluster is not None:
        link = "NCCL" if gpus else "ring"
        return StrategyChoice(
            "multiworker", f"{len(cluster.workers)} workers of {cluster.source}, {devices}, {link}", cluster
        )
    if requested == "mirrored" and local == 1 and not gpus:
        raise PneumoError("--strategy mirrored needs several devices; here is one CPU. --replicas 2 divides it in two.")
    if requested == "mirrored" or (requested == "auto" and local > 1):
        return StrategyChoice("mirrored", f"mirrored, {devices}")
    return StrategyChoice("one", "one device, GPU:0" if gpus else "one device, CPU:0")


def cluster_for(requested: str, environ: Mapping[str, str]) -> Cluster | None:
    """The workers of a command, from the environment alone; None where the command is one process.

    Raises:
        PneumoError: the variables do not fit together; see :func:`find_cluster`.
    """
    return find_cluster(environ) if requested in ("auto", "multiworker") else None


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """The cluster of ``TF_CONFIG`` or of a Slurm step of several tasks; None where there is one process only.

    Raises:
        PneumoError: the variables cannot be read, or do not fit together.
    """
    if environ.get("TF_CONFIG"):
        cluster = _from_tf_config(environ["TF_CONFIG"])
        return cluster if len(cluster.workers) > 1 else None
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
        workers = [str(address) for address in [*cluster.get("chief", []), *cluster["worker"]]]
        index = int(task["index"]) + (len(cluster.get("chief", [])) if task["type"] == "worker" else 0)
        kind = task["type"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PneumoError(f"TF_CONFIG cannot be read ({type(error).__name__}: {error}). {hint}") from None
    if kind not in ("worker", "chief") or set(cluster) - {"worker", "chief"}:
        raise PneumoError(f"TF_CONFIG may only name workers, and a chief. {hint}")
    return _checked(Cluster(tuple(workers), index, "TF_CONFIG"), hint)


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    """The cluster of a Slurm step, by TensorFlow's resolver; ports come from the job's number, GPUs from Slurm."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    hint = "Start the training with srun, inside a job; see experiments/slurm/."
    if missing := [name for name in names if not environ.get(name)]:
        raise PneumoError(f"Slurm's variables {', '.join(missing)} are not set, although others are. {hint}")
    import tensorflow as tf

    try:
        job = int(re.sub(r"\D", "", environ.get("SLURM_JOB_ID", "")) or 0)
        # The resolver counts one GPU for each task; which GPUs a task really sees is set by Slurm (--gpus-per-task).
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
            raise PneumoError(f"{cluster.source}: {address!r} is not an address of the form host:port. {hint}")
    if len(set(cluster.workers)) < len(cluster.workers):
        raise PneumoError(f"{cluster.source}: two workers have the same address. {hint}")
    if not 0 <= cluster.index < len(cluster.workers):
        raise PneumoError(
            f"{cluster.source}: this is worker {cluster.index}, but the workers are numbered 0 to "
            f"{len(cluster.workers) - 1}. {hint}"
        )
    return cluster


def _is_name(host: str) -> bool:
    """Whether a host's name can be looked up at all: not with an empty part, or one that is too long."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def wait_for_all(
    cluster: Cluster, seconds: float = WAIT_SECONDS, notify: Callable[[str], None] = lambda text: None
) -> None:
    """Wait until this worker has reached every other one, and every other one has reached it.

    Args:
        cluster: all workers.
        seconds: the time limit.
        notify: called with a sentence that says for which workers this one waits.

    Raises:
        PneumoError: this worker's port is in use, or another worker has another number than the list says.
        Stopped: some could not be reached within the time limit. A host without a known name is waited for too, since a
            cluster may publish its names after its nodes have started.
    """
    others = set(range(len(cluster.workers))) - {cluster.index}
    reached: set[int] = set()  # by this worker
    reached_us: set[int] = set()  # this worker, by these
    stop = threading.Event()
    listener = _listen(cluster)
    thread = threading.Thread(target=_answer, args=(listener, cluster.index, reached_us, stop), daemon=True)
    thread.start()
    started, spoke = time.monotonic(), time.monotonic() - 4.5
    try:
        while reached != others or not reached_us >= others:
            for number in sorted(others - reached):
                if _greet(cluster, number):
                    reached.add(number)
            now = time.monotonic()
            lacking = ", ".join(f"{n} ({cluster.workers[n]})" for n in sorted(others - (reached & reached_us)))
            if lacking and now - started > seconds:
                raise Stopped(
                    f"Worker {cluster.index} has waited {seconds:.0f} s for worker {lacking} of {cluster.source}, "
                    "and could not reach it. Look at that worker's own output, check that its host can be reached at "
                    "that port, and start all workers again. (--wait-for-workers SECONDS waits longer.)",
                    AGAIN,
                )
            if lacking and now - spoke > 5.0:
                spoke = now
                notify(f"Worker {cluster.index} of {len(cluster.workers)} waits for worker {lacking}.")
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join(timeout=5)
        listener.close()


def _listen(cluster: Cluster) -> socket.socket:
    """A socket on this worker's own port."""
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
                "Another run uses it, or a process that is left from one. End that, or choose another port."
            ) from None
        raise PneumoError(f"Port {port} of {host} cannot be opened: {error.strerror}. Choose another port.") from None
    listener.settimeout(0.2)
    return listener


def _answer(listener: socket.socket, index: int, reached_us: set[int], stop: threading.Event) -> None:
    """Answer every worker that connects with this one's number, until ``stop`` is set."""
    while not stop.is_set():
        with contextlib.suppress(OSError, ValueError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(2.0)
                text = connection.recv(64)
                if text.startswith(GREETING):
                    connection.sendall(GREETING + str(index).encode())
                    reached_us.add(int(text.removeprefix(GREETING)))


def _greet(cluster: Cluster, number: int) -> bool:
    """Whether a worker answers at its address."""
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
