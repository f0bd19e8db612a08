"""One device, several, or several hosts: the only place that knows TensorFlow's strategies.

In: what is wished for (``--strategy``), the devices and the cluster. Out: an :class:`Engine`, which makes variables
where they belong, deals a batch out to the replicas, adds up what they found, and gathers predictions in order. With it
the global batch, its loss and its gradient are those of one device at any number of replicas:

- each replica takes its part of every batch, as equal as can be, and each image counts one over the whole batch's
  number; nothing is padded in training, since a padding row would enter BatchNorm's statistics (a prediction is padded,
  and cut);
- BatchNorm is synchronized; gradients are added up before they are clipped, checked and applied.

Keras 3.15.1 breaks MultiWorkerMirroredStrategy in two places: ``_maybe_symbolic_build`` reduces a PerReplica, and
``reduce_per_replica`` takes axis 0 of scalars. Its optimizer, besides, clips each replica's gradient before adding them
up. The way round: :class:`keras_pneumo.training.step.Network` builds nothing symbolically and takes its training
function from :meth:`Engine.step_function`; the optimizers leave the adding up to :meth:`Engine.add_up`. ``model.fit``
stays the loop. When a later Keras passes ``tests/test_distribution.py`` without these, they can go.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.order import Share, TrainingPlan
from keras_pneumo.data.batches.pipeline import training_batches
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor
from keras_pneumo.training.distributed.cluster import WAIT_SECONDS, Cluster, choose_strategy, wait_for_all

OF_ANOTHER = re.compile(r"collective|incarnation|peer|socket|connection|recv|grpc|coordination|heartbeat", re.I)
"""Words of TensorFlow 2.21's messages about a worker that is gone or does something else (its C++ sources)."""

LONGEST = 300


@dataclass(frozen=True)
class DistributedNetwork:
    """A network whose batches are dealt out to all replicas; every worker gets the whole outputs."""

    predict_on_batch: Callable[[Any], Any]


class Engine:
    """Where a training runs; without a strategy, TensorFlow's default device."""

    def __init__(self, strategy: Any = None, cluster: Cluster | None = None, text: str = "one device") -> None:
        """Use :func:`start_engine`, or :data:`ONE`."""
        self.strategy = strategy
        self.cluster = cluster
        self.text = text
        self.workers = len(cluster.workers) if cluster else 1
        self.worker = cluster.index if cluster else 0
        self.replicas = strategy.num_replicas_in_sync if strategy else 1
        local = self.replicas // self.workers
        self.share = Share(self.worker * local, local, self.replicas)
        self._sum: Any = None

    @property
    def chief(self) -> bool:
        """Whether this worker writes the run folder."""
        return self.worker == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Variables made within it live on every replica."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def batches(self, source: ImageSet, plan: TrainingPlan) -> Any:
        """What ``fit`` iterates over.

        Raises:
            PneumoError: a batch has fewer images than there are replicas.
        """
        if min(len(rows) for rows in plan.rows(len(source))) < self.replicas:
            raise PneumoError(
                f"A batch of {plan.batch_size} cannot be dealt out to {self.replicas} replicas. Raise "
                "global_batch_size "
                "to at least twice their number, or use fewer."
            )
        if not self.strategy:
            return training_batches(source, plan)

        return self.strategy.distribute_datasets_from_function(lambda _: training_batches(source, plan, self.share))

    def add_up(self, values: list[Any]) -> list[Any]:
        """Sums over all replicas; called by each replica within a step."""
        if not self.strategy:
            return values
        return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values))

    def step_function(
        self, step: Callable[..., dict[str, Any]], jit: bool, spec: Any = None
    ) -> Callable[..., dict[str, Any]]:
        """``step(data, wish)`` as a graph, run by every replica; what it returns is the same on each.

        ``spec`` is what the data look like, with batches of any size. Without it each replica's graph would be made for
        its own number of images, and synchronized BatchNorm's gradient differs between a known and an unknown number.
        """
        strategy = self.strategy
        options: dict[str, Any] = {"reduce_retracing": True}
        if spec is not None:
            options = {"input_signature": (spec, tf.TensorSpec([], tf.int32))}
        if not strategy:
            return tf.function(step, jit_compile=jit or None, **options)

        @tf.function(**options)
        def everywhere(data: Any, wish: tf.Tensor) -> dict[str, Any]:
            found = strategy.run(step, args=(data, wish))
            return {name: strategy.experimental_local_results(value)[0] for name, value in found.items()}

        return everywhere

    def predictor(self, model: Any) -> Callable[[Any], Any]:
        """A function from a batch, the same on every worker, to all of its rows in order, dealt out to all replicas."""
        strategy, replicas = self.strategy, self.replicas

        @tf.function(reduce_retracing=True)
        def everywhere(parts: Any) -> Any:
            found = strategy.run(lambda images: model(images, training=False), args=(parts,))
            # In the graph: outside of one TensorFlow would trace the gathering anew each time.
            return tf.nest.map_structure(lambda rows: strategy.gather(rows, axis=0), found)

        def predict(images: Any) -> Any:
            images = np.asarray(images)
            rows = len(images)
            padded = np.concatenate([images, *[images[-1:]] * max(replicas - rows, 0)])  # a row for each replica
            split = np.array_split(padded, replicas)
            parts = strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(split[context.replica_id_in_sync_group])
            )
            return tf.nest.map_structure(lambda one: one.numpy()[:rows], everywhere(parts))

        return predict

    def sharing(self) -> DistributedPredictor:
        """For predictions: networks made here, and asked on all replicas."""
        if not self.strategy:
            return SINGLE_DEVICE
        return DistributedPredictor(
            self.scope, lambda model: DistributedNetwork(self.predictor(model)), self.replicas, self.workers
        )

    def agree(self, value: int) -> int:
        """The chief's value, on every worker; each waits here for all others."""
        if self.workers == 1:
            return value
        return self._everywhere(value if self.chief else 0) // self.share.count

    def agree_text(self, text: str) -> str:
        """The chief's text, on every worker."""
        found = bytearray()
        content = text.encode()
        for start in range(0, self.agree(len(content)), 7):  # seven bytes fit into a number with a sign
            found += self.agree(int.from_bytes(content[start : start + 7].ljust(7), "big")).to_bytes(7, "big")
        return found.decode().rstrip()

    def largest(self, value: int) -> int:
        """The largest of all workers' values, on every worker."""
        if self.workers == 1:
            return value
        found = 0
        for worker in range(self.workers):  # there is no maximum among the reductions
            mine = value if worker == self.worker else 0
            found = max(found, self._everywhere(mine) // self.share.count)
        return found

    def _everywhere(self, value: int) -> int:
        def each(number: tf.Tensor) -> Any:
            # Copied onto the replica's device, by which TensorFlow sees where the sum is to go.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(number))

        if self._sum is None:  # one graph for all calls
            self._sum = tf.function(lambda number: self.strategy.run(each, args=(number,)))
        return int(self.strategy.experimental_local_results(self._sum(tf.constant(value, tf.int64)))[0].numpy())


ONE = Engine()
"""One device, TensorFlow's default."""


def start_engine(
    wanted: str = "auto",
    replicas: int | None = None,
    wait_seconds: float = WAIT_SECONDS,
    tell: Callable[[str], None] = lambda text: None,
) -> Engine:
    """Take the devices; called once, before anything else asks TensorFlow for one.

    Args:
        wanted: see :func:`keras_pneumo.training.distributed.cluster.choose_strategy`.
        replicas: see there.
        wait_seconds: how long workers wait for one another.
        tell: is told what a worker waits for.

    Raises:
        PneumoError: the wish cannot be met, or a port is in use.
        Stopped: a worker did not come.
    """
    gpus = tf.config.list_physical_devices("GPU")
    choice = choose_strategy(wanted, os.environ, len(gpus), replicas)
    if choice.kind == "one":
        return Engine(text=choice.text)
    if gpus and replicas:
        tf.config.set_visible_devices(gpus[:replicas], "GPU")
    if not gpus and replicas:
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * replicas)
    if choice.kind == "mirrored":
        kind = "GPU" if gpus else "CPU"
        names = [f"{kind}:{number}" for number in range(replicas or len(gpus) or 1)]
        return Engine(tf.distribute.MirroredStrategy(names), text=choice.text)
    assert choice.cluster is not None
    wait_for_all(choice.cluster, wait_seconds, tell)
    os.environ["TF_CONFIG"] = choice.cluster.tf_config()
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if gpus else implementation.RING
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return Engine(strategy, choice.cluster, choice.text)


@contextlib.contextmanager
def lost_workers(engine: Engine) -> Iterator[None]:
    """Within this context TensorFlow's complaints about another worker become one sentence.

    Raises:
        Stopped: another worker is gone.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.FailedPreconditionError,
    ) as error:
        if engine.workers == 1 or not _of_another(error):
            raise
        raise Stopped(
            f"Worker {engine.worker} of {engine.workers} has lost another one. Look at the output of the others for "
            "the reason. Start all workers again, with the same command; they go on from the last checkpoint. "
            f"(TensorFlow: {type(error).__name__}, {_reason(error)})"
        ) from None


def _of_another(error: tf.errors.OpError) -> bool:
    """Whether TensorFlow complains of another worker; two of its classes may mean a fault of this one's own."""
    if isinstance(error, tf.errors.InternalError | tf.errors.FailedPreconditionError):
        return OF_ANOTHER.search(error.message) is not None
    return True


def _reason(error: tf.errors.OpError) -> str:
    """The line of TensorFlow's message that names the cause; the others are headings and the graph's place."""
    lines = [one.strip() for one in error.message.splitlines() if one.strip()]
    line = next((one for one in lines if OF_ANOTHER.search(one)), lines[0] if lines else "no reason given")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
