"""Looks at the step of two logical devices in a process of its own: ``step_lab.py OUT.json OUT.npz``.

A process divides its CPU once, before its first operation, so the tests cannot do this themselves. Writes what they
check: the messages of a step with BatchNorm learning and frozen, its losses with and without XLA, and what BatchNorm
and its gradients are where each replica has some of the images.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks.replicas import messages_of
from keras_pneumo.config import CLASSIFIER
from keras_pneumo.inference.run import build
from keras_pneumo.models.batch_norm import batch_norm
from keras_pneumo.models.resnet import convolution
from keras_pneumo.models.synchronized import synchronized_batch_norm
from keras_pneumo.training.distributed import strategy
from keras_pneumo.training.losses import image_losses
from keras_pneumo.training.optimizers import make_optimizer, set_learning
from keras_pneumo.training.step import training_network

EXPERIMENT = CLASSIFIER.replace(
    name="x", encoder="resnet18", weights="random", image_size=32, frozen_epochs=0, optimizer="sgd"
)
IMAGES = (4, 3)
"""Of the batch, on each replica."""


def small(synchronized):
    """Two convolutions with BatchNorm; XLA takes minutes for the hundred clusters of a ResNet on a CPU."""
    image = keras.Input((32, 32, 1))
    x = image
    for stage in (1, 2):
        x = convolution(x, 8, 3, stride=2, name=f"conv{stage}")
        x = batch_norm(x, f"bn{stage}", synchronized)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(1, name="fc")(x))


def network_of(distribution, frozen=False, make=None):
    """A new network from the same start."""
    keras.utils.set_random_seed(0)
    experiment = EXPERIMENT.replace(frozen_batchnorm=frozen)
    with distribution.scope():
        model = make(True) if make else build(experiment, synchronized=True)
        if not make:
            set_learning(model, experiment, True)
        optimizer = make_optimizer(experiment, model, 1e-2, 10, 5)
        return training_network(model, image_losses(experiment), optimizer, distribution=distribution)


def batches(distribution):
    """The same batch again and again, in unequal parts."""
    generator = np.random.default_rng(0)
    count = sum(IMAGES)
    arrays = (
        generator.random((count, 32, 32, 1)).astype("float32"),
        (generator.random(count) > 0.5).astype("float32"),
        np.full(count, 1 / count, "float32"),
    )

    def parts(context):
        def of_each_replica():
            for start, end in ((0, IMAGES[0]), (IMAGES[0], count)):
                yield tuple(array[start:end] for array in arrays)

        specs = tuple(tf.TensorSpec([None, *array.shape[1:]], tf.float32) for array in arrays)
        return tf.data.Dataset.from_generator(of_each_replica, output_signature=specs).repeat()

    return iter(distribution.strategy.distribute_datasets_from_function(parts))


def clusters_and_messages(function, *arguments):
    """How many clusters XLA makes of a function's first call, and how many messages are outside of them and inside."""
    from tensorflow.python.eager import context

    context.context().enable_graph_collection()
    result = function(*arguments)
    graphs = context.context().export_run_metadata().partition_graphs
    context.context().disable_graph_collection()
    outside = [node.op for graph in graphs for node in graph.node]
    inside = [node.op for graph in graphs for each in graph.library.function for node in each.node_def]
    clusters = sum(name in ("_XlaRun", "XlaLaunch") for name in outside)
    reductions = [sum(name.startswith("Collective") for name in names) for names in (outside, inside)]
    return result, [clusters, *reductions]


PARTS = ((4, 3), (7, 0), (1, 6))
"""Images of BatchNorm's input on each replica."""

INPUTS = [(kind, mean, part) for kind in ("float32", "float64") for mean in (0.0, 300.0) for part in PARTS]


def batch_norm_input(kind, mean):
    """Seven small images of four channels, the gradient of their output, and gamma and beta."""
    generator = np.random.default_rng(1)
    shapes = ((7, 5, 6, 4), (7, 5, 6, 4), (4,), (4,))
    images, of_output, gamma, beta = (generator.normal(size=shape) for shape in shapes)
    return [array.astype(kind) for array in (images + mean, of_output, gamma, beta)]


def synchronized(distribution, kind, mean, part):
    """Outputs, mean, variance, and gradients of images, gamma and beta, those of all replicas put together."""
    images, of_output, gamma, beta = batch_norm_input(kind, mean)
    bounds = (0, part[0], 7)

    def own(context):
        start, end = bounds[context.replica_id_in_sync_group :][:2]
        return tuple(tf.constant(array[start:end]) for array in (images, of_output))

    @tf.function
    def on_all_replicas(data):
        def on_one(data):
            x, of_y = data
            weights = tf.constant(gamma), tf.constant(beta)
            with tf.GradientTape() as tape:
                tape.watch([x, *weights])
                y, mean, variance = synchronized_batch_norm(x, *weights, 1e-5)
                product = tf.reduce_sum(y * of_y)
            return y, mean, variance, *tape.gradient(product, [x, *weights])

        return distribution.strategy.run(on_one, args=(data,))

    data = distribution.strategy.experimental_distribute_values_from_function(own)
    results = [
        [value.numpy() for value in distribution.strategy.experimental_local_results(result)]
        for result in on_all_replicas(data)
    ]
    return [
        np.concatenate(results[0]), results[1][0], results[2][1], np.concatenate(results[3]), sum(results[4]),
        sum(results[5]),
    ]  # fmt: skip


def main():
    distribution = strategy.start_distribution("mirrored", 2)
    iterator = batches(distribution)
    arrays = {
        f"{kind} {mean} {part} {number}": array
        for kind, mean, part in INPUTS
        for number, array in enumerate(synchronized(distribution, kind, mean, part) + batch_norm_input(kind, mean))
    }
    np.savez(sys.argv[2], **arrays)
    report = {}
    strategy.MESSAGE_BYTES = 16_000_000  # three messages for the 45 MB of a ResNet18
    for frozen in (False, True):
        network = network_of(distribution, frozen)
        step = distribution.step_function(network.learn, False, iterator.element_spec)
        graph = step.get_concrete_function().graph
        report["frozen" if frozen else "learning"] = [vars(message) for message in messages_of(graph)]
        report["gradients"] = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    for jit in (False, True):
        network = network_of(distribution, make=small)
        step = distribution.step_function(network.learn, jit, iterator.element_spec)
        first, counts = clusters_and_messages(step, next(iterator), tf.constant(0))
        losses = [first, *(step(next(iterator), tf.constant(0)) for _ in range(3))]
        weights = np.concatenate([np.ravel(value) for value in network.get_weights()])
        report["xla" if jit else "plain"] = {
            "losses": [float(values["loss"]) for values in losses],
            "weights": float(np.linalg.norm(weights)),
            "clusters": counts[0],
            "messages": counts[1:],
        }
    Path(sys.argv[1]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
