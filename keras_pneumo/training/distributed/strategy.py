"""Training on one device, on several, or on several hosts: the only place that knows TensorFlow's strategies.

In: the strategy that the user asked for (``--strategy``), the devices and the cluster. Out: a :class:`Distribution`,
which creates variables on all devices, distributes batches to the replicas, sums what the replicas computed, and
gathers predictions in order. The global batch, its loss and its gradient are the same for any number of replicas:

- Each replica takes its part of every batch. The parts are as equal as possible, and each image has the weight of one
  over the number of images in the whole batch. Nothing is padded in training, since padding would enter BatchNorm's
  statistics. (Predictions are padded, and the padding is cut off.)
- BatchNorm is synchronized. Gradients are summed before they are clipped, checked and applied.

Keras 3.15.1 breaks MultiWorkerMirroredStrategy in two places: ``_maybe_symbolic_build`` reduces a PerReplica, and
``reduce_per_replica`` takes axis 0 of scalars. Besides, its optimizer clips each replica's gradient before the sum.
Therefore :class:`keras_pneumo.training.step.TrainingNetwork` builds nothing symbolically and takes its training
function from :meth:`Distribution.step_function`, and the optimizers leave the sum to
:meth:`Distribution.sum_over_replicas`. ``model.fit`` stays the loop. When a later Keras passes
``tests/training/distributed/test_strategy.py`` without these three, they can go.
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

OTHER_WORKER = re.compile(r"collective|incarnation|peer|socket|connection|recv|grpc|coordination|heartbeat", re.I)
"""Words in TensorFlow 2.21's messages about a lost worker, or one that does something else (from its C++ sources)."""

MESSAGE_BYTES = 32 * 2**20
"""A message of gradients is closed with the first tensor that makes it larger than this: 3 messages for a ResNet50."""

LONGEST = 300
"""Characters of TensorFlow's message that are quoted."""


@dataclass(frozen=True)
class DistributedNetwork:
    """A network that predicts each batch on all replicas; every worker gets the whole outputs."""

    predict_on_batch: Callable[[Any], Any]


class Distribution:
    """The devices that a training runs on; without a strategy, TensorFlow's default device."""

    def __init__(self, strategy: Any = None, cluster: Cluster | None = None, description: str = "one device") -> None:
        """Use :func:`start_distribution`, or :data:`ONE_DEVICE`."""
        self.strategy = strategy
        self.description = description
        self.workers = len(cluster.workers) if cluster else 1
        self.worker = cluster.index if cluster else 0
        self.replicas = strategy.num_replicas_in_sync if strategy else 1
        local = self.replicas // self.workers
        self.share = Share(self.worker * local, local, self.replicas)
        self._sum: Any = None

    @property
    def compiles(self) -> bool:
        """Whether XLA is worth its compilation here: on GPUs; on two CPU cores it halved the speed of a step."""
        return bool(tf.config.list_logical_devices("GPU"))

    @property
    def chief(self) -> bool:
        """Whether this worker writes the run folder."""
        return self.worker == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """A context whose variables are created on every replica."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def batches(self, source: ImageSet, plan: TrainingPlan) -> Any:
        """The training batches that ``fit`` iterates over.

        Raises:
            PneumoError: a batch has fewer images than there are replicas.
        """
        if min(len(rows) for rows in plan.rows(len(source))) < self.replicas:
            raise PneumoError(
                f"A batch of {plan.batch_size} images is too small for {self.replicas} replicas. Raise "
                "global_batch_size to at least twice the number of replicas, or use fewer replicas."
            )
        if not self.strategy:
            return training_batches(source, plan)
        return self.strategy.distribute_datasets_from_function(lambda _: training_batches(source, plan, self.share))

    def sum_over_replicas(self, values: list[Any]) -> list[Any]:
        """The sum of each value over all replicas; called by each replica within a step.

        The values, all of one type, travel in messages of :data:`MESSAGE_BYTES`, the last of the list first, since the
        last layers have their gradients first. A message goes out when its values are there and the one before it,
        also one of BatchNorm, has arrived: TensorFlow keeps one order for all.
        """
        if not self.strategy:
            return values
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=MESSAGE_BYTES)
        return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values, options))

    def step_function(
        self, step: Callable[..., dict[str, Any]], jit: bool, spec: Any = None
    ) -> Callable[..., dict[str, Any]]:
        """``step(data, stop_request)`` as a graph that every replica runs; its results are the same on each.

        With ``jit`` XLA compiles it: whole on one device, between the messages where there are replicas.

        ``spec`` describes the data, with batches of any size. Without it each replica's graph would be made for its own
        number of images, and a part of another size would make a new one.
        """
        strategy = self.strategy
        # No step needs AutoGraph, which reads the source of all that is traced: a quarter of the time of tracing.
        options: dict[str, Any] = {"autograph": False, "reduce_retracing": True}
        if spec is not None:
            options = {"autograph": False, "input_signature": (spec, tf.TensorSpec([], tf.int32))}
        if not strategy:
            return tf.function(step, jit_compile=jit or None, **options)

        @tf.function(**options)
        def on_all_replicas(data: Any, stop_request: tf.Tensor) -> dict[str, Any]:
            with xla_between_messages() if jit else contextlib.nullcontext():
                results = strategy.run(step, args=(data, stop_request))
            return {name: strategy.experimental_local_results(value)[0] for name, value in results.items()}

        return on_all_replicas

    def predictor(self, model: Any) -> Callable[[Any], Any]:
        """A function that predicts a batch, the same on every worker, on all replicas; it returns all rows in order."""
        strategy, replicas = self.strategy, self.replicas

        @tf.function(reduce_retracing=True)
        def on_all_replicas(parts: Any) -> Any:
            outputs = strategy.run(lambda images: model(images, training=False), args=(parts,))
            # Within the graph, since outside of one TensorFlow would trace the gathering anew for each batch.
            return tf.nest.map_structure(lambda rows: strategy.gather(rows, axis=0), outputs)

        def predict(images: Any) -> Any:
            images = np.asarray(images)
            rows = len(images)
            padded = np.concatenate([images, *[images[-1:]] * max(replicas - rows, 0)])  # a row for each replica
            split = np.array_split(padded, replicas)
            parts = strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(split[context.replica_id_in_sync_group])
            )
            return tf.nest.map_structure(lambda output: output.numpy()[:rows], on_all_replicas(parts))

        return predict

    def distributed_predictor(self) -> DistributedPredictor:
        """How ``inference`` builds networks here and predicts with them on all replicas."""
        if not self.strategy:
            return SINGLE_DEVICE
        return DistributedPredictor(
            self.scope, lambda model: DistributedNetwork(self.predictor(model)), self.replicas, self.workers
        )

    def broadcast(self, value: int) -> int:
        """The chief's value, on every worker; each worker waits here for all others."""
        if self.workers == 1:
            return value
        return self._sum_of_all(value if self.chief else 0) // self.share.count

    def broadcast_text(self, text: str) -> str:
        """The chief's text, on every worker."""
        received = bytearray()
        content = text.encode()
        for start in range(0, self.broadcast(len(content)), 7):  # seven bytes fit into a number with a sign
            received += self.broadcast(int.from_bytes(content[start : start + 7].ljust(7), "big")).to_bytes(7, "big")
        return received.decode().rstrip()

    def maximum(self, value: int) -> int:
        """The largest of all workers' values, on every worker."""
        if self.workers == 1:
            return value
        highest = 0
        for worker in range(self.workers):  # there is no maximum among the reductions
            own = value if worker == self.worker else 0
            highest = max(highest, self._sum_of_all(own) // self.share.count)
        return highest

    def _sum_of_all(self, value: int) -> int:
        """The sum of a number over all replicas of all workers."""

        def on_each_replica(number: tf.Tensor) -> Any:
            # The copy is on the replica's device, which tells TensorFlow where the sum has to go.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(number))

        if self._sum is None:  # one graph for all calls
            self._sum = tf.function(lambda number: self.strategy.run(on_each_replica, args=(number,)))
        return int(self.strategy.experimental_local_results(self._sum(tf.constant(value, tf.int64)))[0].numpy())


def xla_between_messages() -> Any:
    """A scope whose operations XLA compiles in clusters, as large as the messages between them allow.

    The messages stay outside, so that TensorFlow keeps their order, the same on all replicas. Synchronized BatchNorm
    sends some in every layer, so the step cannot be one computation.
    """
    return tf.xla.experimental.jit_scope(compile_ops=lambda node: "Collective" not in node.op)


ONE_DEVICE = Distribution()
"""One device, TensorFlow's default."""


def start_distribution(
    requested: str = "auto",
    replicas: int | None = None,
    wait_seconds: float = WAIT_SECONDS,
    notify: Callable[[str], None] = lambda text: None,
) -> Distribution:
    """Make the devices ready; called once, before anything else asks TensorFlow for a device.

    Args:
        requested: the strategy; see :func:`keras_pneumo.training.distributed.cluster.choose_strategy`.
        replicas: as there.
        wait_seconds: how long workers wait for each other.
        notify: called with a sentence that says for which workers this one waits.

    Raises:
        PneumoError: the strategy cannot be had here, or a port is in use.
        Stopped: a worker could not be reached.
    """
    gpus = tf.config.list_physical_devices("GPU")
    choice = choose_strategy(requested, os.environ, len(gpus), replicas)
    if choice.kind == "one":
        return Distribution(description=choice.description)
    if gpus and replicas:
        tf.config.set_visible_devices(gpus[:replicas], "GPU")
    if not gpus and replicas:
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * replicas)
    if choice.kind == "mirrored":
        kind = "GPU" if gpus else "CPU"
        names = [f"{kind}:{number}" for number in range(replicas or len(gpus) or 1)]
        return Distribution(tf.distribute.MirroredStrategy(names), description=choice.description)
    assert choice.cluster is not None
    wait_for_all(choice.cluster, wait_seconds, notify)
    os.environ["TF_CONFIG"] = choice.cluster.tf_config()
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if gpus else implementation.RING
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return Distribution(strategy, choice.cluster, choice.description)


@contextlib.contextmanager
def lost_workers(distribution: Distribution) -> Iterator[None]:
    """A context in which TensorFlow's errors about a lost worker become one sentence.

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
        if distribution.workers == 1 or not _about_another_worker(error):
            raise
        raise Stopped(
            f"Worker {distribution.worker} of {distribution.workers} has lost another worker. Look at the output of "
            "the others for the reason. Start all workers again with the same command; they go on from the last "
            "checkpoint. "
            f"(TensorFlow: {type(error).__name__}, {_reason(error)}.)"
        ) from None


def _about_another_worker(error: tf.errors.OpError) -> bool:
    """Whether an error is about another worker; two of TensorFlow's classes may also be about this one."""
    if isinstance(error, tf.errors.InternalError | tf.errors.FailedPreconditionError):
        return OTHER_WORKER.search(error.message) is not None
    return True


def _reason(error: tf.errors.OpError) -> str:
    """The line of TensorFlow's message that names the cause; the others are headings and positions in the graph."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    line = next((line for line in lines if OTHER_WORKER.search(line)), lines[0] if lines else "no reason given")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
