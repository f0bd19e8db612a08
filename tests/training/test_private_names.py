"""The private names of Keras and TensorFlow that the package uses, each with a test that says what broke.

They have no public counterpart. setup.cfg caps both packages at the versions that these tests passed with; raise a cap
only together with a run of this file. ``parity`` has one more, tested in tests/parity.
"""

import ast
import importlib
import inspect
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pneumo
from keras_pneumo.training.optimizers import SGD, AdamW
from keras_pneumo.training.step import TrainingNetwork

PACKAGE = Path(keras_pneumo.__file__).parent

ATTRIBUTES = {
    "_model_variables_moving_average": "training.averaging",
    "_resolve_task_configuration": "training.distributed.cluster",
}
"""Private attributes of Keras's and TensorFlow's objects, by the module that reads them."""

METHODS = {
    "_all_reduce_sum_gradients": AdamW,
    "_get_variable_index": AdamW,
    "_maybe_symbolic_build": TrainingNetwork,
}
"""Private methods of Keras's classes that a class of ours overrides or calls."""

IMPORTS = {
    "keras.src.backend.common": "parity.checks",
    "tensorflow.python.framework.config": "training.trainer",
}
"""Private modules, by the module that imports them."""


def modules_with_keras():
    """Every module of the package that imports Keras or TensorFlow: its name and its syntax tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        if "import keras\n" in source or "import tensorflow" in source or "from keras." in source:
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), ast.parse(source)


def test_no_other_private_name_of_an_object_is_used():
    """Names that Python's own modules have are left out: ``os._exit``, ``NamedTuple._asdict``."""
    used = {
        (node.attr, module)
        for module, tree in modules_with_keras()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os"))
        if node.attr not in ("_asdict", "_replace")
    }
    assert used == set(ATTRIBUTES.items())


def test_no_other_private_module_is_imported():
    used = {
        (name, module)
        for module, tree in modules_with_keras()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.startswith(("keras.src", "tensorflow.python"))
    }
    assert used == set(IMPORTS.items())


def test_no_other_private_method_of_keras_is_overridden_or_called():
    """Of the package's classes that derive from Keras's."""
    used = set()
    for module, tree in modules_with_keras():
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        loaded = importlib.import_module(f"keras_pneumo.{module}") if classes else None
        for node in classes:
            kind = getattr(loaded, node.name, None)
            bases = [base for base in inspect.getmro(kind or object) if base.__module__.startswith("keras.")]
            names = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
            names |= {
                inner.attr
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self"
            }
            private = {name for name in names if name.startswith("_") and not name.startswith("__")}
            used |= {name for name in private if any(name in vars(base) for base in bases)}
    assert used == set(METHODS)


@pytest.mark.parametrize(("name", "kind"), METHODS.items(), ids=METHODS)
def test_keras_still_has_the_private_method(name, kind):
    bases = [base for base in inspect.getmro(kind) if base.__module__.startswith("keras.")]
    assert any(name in vars(base) for base in bases), f"Keras {keras.__version__} no longer has {name}"


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_the_index_of_a_variable_is_its_position(kind):
    """Used in update_step for the moments, the multiple of the rate and the decay of a variable."""
    variables = [keras.Variable(np.zeros(size, np.float32)) for size in (2, 3, 4)]
    optimizer = kind()
    optimizer.build(variables)
    indices = [optimizer._get_variable_index(variable) for variable in variables]
    assert indices == [0, 1, 2], "Optimizer._get_variable_index no longer gives a variable's position"


def test_the_moving_average_of_the_weights_is_in_the_order_of_the_variables():
    """Read by averaging.averaged_weights and keep_average."""
    variables = [keras.Variable(np.full(size, 1.0, np.float32)) for size in (2, 3)]
    optimizer = SGD(0.5, momentum=0.0, use_ema=True, ema_momentum=0.9)
    optimizer.apply([keras.ops.ones((2,)), keras.ops.zeros((3,))], variables)
    averages = [np.array(average) for average in optimizer._model_variables_moving_average]
    broken = "Optimizer._model_variables_moving_average no longer holds each variable's average"
    np.testing.assert_allclose(averages[0], [0.5, 0.5], err_msg=broken)  # the first step takes the weights as they are
    np.testing.assert_allclose(averages[1], [1.0, 1.0, 1.0], err_msg=broken)


def test_an_optimizer_leaves_the_sum_over_replicas_to_the_training_step():
    """The step adds up the replicas' gradients before they are clipped; Keras would add them up once more."""
    calls = []

    class Counting(SGD):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            calls.append(1)
            return super()._all_reduce_sum_gradients(grads_and_vars)

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        variable = keras.Variable(np.ones(2, np.float32))
        optimizer = Counting(0.5, momentum=0.0)
        optimizer.build([variable])
    strategy.run(lambda: optimizer.apply([tf.ones(2)], [variable]))
    assert calls, "Keras no longer adds up gradients by Optimizer._all_reduce_sum_gradients: see what it does instead"
    np.testing.assert_allclose(np.array(variable), [0.5, 0.5])


def test_fit_builds_a_model_by_the_method_that_the_training_network_leaves_out():
    """Keras's own fails with several workers (distributed.strategy says how)."""
    calls = []

    class Counting(keras.Model):
        def _maybe_symbolic_build(self, *arguments, **named):
            calls.append(1)
            return super()._maybe_symbolic_build(*arguments, **named)

    image = keras.Input((1,))
    model = Counting(image, keras.layers.Dense(1)(image))
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    assert calls, "Model.fit no longer calls Model._maybe_symbolic_build: see what it calls instead"


def test_slurms_nodes_keep_slurms_order(monkeypatch):
    """Ranks follow Slurm's order of the nodes; the resolver's public cluster_spec sorts them by name."""
    values = {"STEP_NODELIST": "node[2,10]", "STEP_TASKS_PER_NODE": "1,2", "PROCID": "0", "STEP_NUM_TASKS": "3"}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        gpus_per_node=10**6, gpus_per_task=1, auto_set_gpu=False
    )
    tasks = list(resolver._resolve_task_configuration().items())
    broken = "SlurmClusterResolver._resolve_task_configuration no longer gives {host: tasks} in Slurm's order"
    assert tasks == [("node2", 1), ("node10", 2)], broken
