"""The optimizer of an experiment, and PyTorch's AdamW and SGD as Keras optimizers.

In: gradients and the variables of a network. Out: the variables that PyTorch would have after the same step. Keras's
own optimizers differ: Adam adds its epsilon before the bias correction, and SGD keeps the learning rate inside the
momentum buffer, so the results differ under any schedule. Here the momentum may also follow a schedule (one-cycle),
each variable may have its own multiple of the rate (discriminative rates by depth), and BatchNorm and biases do not
decay.

On TensorFlow one step of a variable is one operation that moves the variable and its moments in place
(``ResourceApplyAdam``, ``ResourceApplyMomentum``), as PyTorch's ``fused=True`` does. Written out, AdamW passes over the
25 million weights of a ResNet50 ten times; ``experiments/benchmarks/notes.md`` says what that costs.

Sources: ``torch.optim.AdamW`` and ``torch.optim.SGD`` (PyTorch 2.14); decoupled decay, arXiv 1711.05101.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_pneumo.config import Experiment
from keras_pneumo.models.resnet import HEAD_GROUP, depth_groups, leaf_layers
from keras_pneumo.training.schedules import Tabulated, cosine, one_cycle, warm_restarts

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

Schedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule

MOMENTUM_RANGE = (0.85, 0.95)
"""Momentum (AdamW's first beta) of the one-cycle policy: it falls to the lower value as the rate rises."""


def make_optimizer(
    experiment: Experiment,
    model: keras.Model,
    learning_rate: float,
    total_steps: int,
    epoch_steps: int | None = None,
) -> keras.optimizers.Optimizer:
    """The experiment's optimizer and schedule over ``total_steps`` for the variables that now learn.

    Args:
        experiment: the settings.
        model: its variables learn at a rate that falls with their distance from the head.
        learning_rate: the highest rate of the head.
        total_steps: optimizer steps until the schedule ends.
        epoch_steps: optimizer steps of an epoch, by which warm restarts count; default: ``total_steps``.
    """
    steps = np.arange(total_steps)
    momentum: float | Tabulated = 0.9
    rate: float | Tabulated = learning_rate  # a constant one; a plateau's is lowered between epochs
    if experiment.schedule == "one_cycle":
        cycle = one_cycle(
            steps,
            total_steps,
            learning_rate,
            rise=experiment.warmup_fraction,
            div_factor=experiment.start_divisor,
            final_div_factor=experiment.final_divisor,
            momentum=MOMENTUM_RANGE,
        )
        rate = Tabulated(cycle.rate)
        momentum = Tabulated(cycle.momentum)
    elif experiment.schedule == "cosine":
        rate = Tabulated(cosine(steps, total_steps, learning_rate))
    elif experiment.schedule == "warm_restarts":
        first = experiment.restart_epochs * (epoch_steps or total_steps)
        rate = Tabulated(warm_restarts(steps, first, learning_rate, experiment.restart_factor))
    multipliers = {path: experiment.depth_decay ** (HEAD_GROUP - group) for path, group in depth_groups(model).items()}
    common: dict[str, Any] = {
        "learning_rate": rate,
        "weight_decay": experiment.weight_decay,
        "rate_multipliers": multipliers,
        "global_clipnorm": experiment.clip_norm,
        "use_ema": experiment.ema > 0,
        "ema_momentum": experiment.ema or 0.99,
    }
    if experiment.optimizer == "sgd":
        return SGD(momentum=momentum, **common)
    return AdamW(beta_1=momentum, **common)


def set_learning(model: keras.Model, experiment: Experiment, encoder_learns: bool) -> None:
    """Set which layers learn; the network must be compiled after this.

    A BatchNorm layer that does not learn keeps its statistics too, and normalises with them.
    """
    model.get_layer("encoder").trainable = encoder_learns
    if experiment.frozen_batchnorm:
        for layer in leaf_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False


def inner_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """The model's optimizer, without the loss scale that mixed precision puts around it."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def decays(variable: Any) -> bool:
    """Whether weight decay applies: to kernels, not to biases or BatchNorm's scale and shift, which are vectors."""
    return len(variable.shape) > 1


class _TorchOptimizer(keras.optimizers.Optimizer):
    """The common part of both optimizers: a rate for each variable, and schedules by optimizer step.

    Clipping (``global_clipnorm``) and ``use_ema`` are the base class's. Its ``weight_decay`` is not used, because it
    knows only one rate.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        decay: float,
        rate_multipliers: Mapping[str, float] | None,
        decay_applies: Callable[[Any], bool],
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.decay = decay
        self.decay_applies = decay_applies
        self.rate_multipliers = dict(rate_multipliers or {})
        self._made: Any = weakref.WeakKeyDictionary()  # by graph; one for each branch of a condition, too

    def build(self, variables: list[Any]) -> None:
        """Store each variable's multiple of the rate and its decay, by position."""
        super().build(variables)
        # Under a distribution strategy update_step sees backend variables, which have lost their Keras path.
        self.multiples = [float(self.rate_multipliers.get(variable.path, 1.0)) for variable in variables]
        self.decays = [self.decay if self.decay_applies(variable) else 0.0 for variable in variables]

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Does nothing, since ``fit`` may end within a phase; :func:`~.averaging.keep_average` does it at the end."""

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> list[Any]:
        """Returns the gradients unchanged: the training step has already summed them, before they were clipped."""
        return list(grads_and_vars)

    def _at_this_step(self, value: float | Schedule) -> Any:
        return value(self.iterations) if callable(value) else value

    def _once_a_step(self, dtype: str, compute: Callable[[str], Any]) -> Any:
        """``compute(dtype)``, which is the same for all variables of a step: within a TensorFlow graph it is made once.

        A ResNet50 has 161 variables, and a schedule holds a table of all steps.
        """
        if keras.backend.backend() != "tensorflow" or tf.executing_eagerly():
            return compute(dtype)
        graph = tf.compat.v1.get_default_graph()
        made = self._made.setdefault(graph, {})
        if dtype not in made:
            made[dtype] = compute(dtype)
        return made[dtype]


class AdamW(_TorchOptimizer):
    """PyTorch's AdamW."""

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-3,
        beta_1: float | Schedule = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
        rate_multipliers: Mapping[str, float] | None = None,
        decay_applies: Callable[[Any], bool] = decays,
        **kwargs: Any,
    ) -> None:
        """Settings of the optimizer.

        Args:
            learning_rate: rate, or a schedule over optimizer steps.
            beta_1: decay of the gradient's mean, or a schedule; bias correction takes the present value, as
                PyTorch does when OneCycleLR cycles the betas.
            beta_2: decay of the squared gradient's mean, a number.
            epsilon: added to the root of the bias-corrected second moment.
            weight_decay: each step multiplies the variable by ``1 - rate * weight_decay``.
            rate_multipliers: multiples of the rate by variable path (``variable.path``); 1 where none is given.
            decay_applies: which variables decay.
            **kwargs: the base class's: ``global_clipnorm``, ``use_ema``, ``name``.
        """
        super().__init__(learning_rate, weight_decay, rate_multipliers, decay_applies, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables: list[Any]) -> None:
        """Make the two moments of each variable."""
        if self.built:
            return
        super().build(variables)
        self._means, self._squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        ops = keras.ops
        index = self._get_variable_index(variable)
        mean, square = self._means[index], self._squares[index]
        dtype = keras.backend.standardize_dtype(variable.dtype)
        gradient = ops.cast(gradient, dtype)
        rate = ops.cast(learning_rate, dtype) * self.multiples[index]
        beta_1, beta_2, correction_1, root_2 = self._once_a_step(dtype, self._moments)
        if self.decays[index]:
            self.assign(variable, variable * (1.0 - rate * self.decays[index]))
        if keras.backend.backend() == "tensorflow":
            # The corrections of both moments stand in the rate and epsilon, so the operation makes none (powers of 0).
            tf.raw_ops.ResourceApplyAdam(
                var=_handle(variable),
                m=_handle(mean),
                v=_handle(square),
                beta1_power=tf.zeros([], dtype),
                beta2_power=tf.zeros([], dtype),
                lr=rate * root_2 / correction_1,
                beta1=beta_1,
                beta2=tf.constant(beta_2, dtype),
                epsilon=self.epsilon * root_2,
                grad=gradient,
            )
            return
        self.assign(mean, mean + (gradient - mean) * (1.0 - beta_1))
        self.assign(square, square + (ops.square(gradient) - square) * (1.0 - beta_2))
        self.assign(variable, variable - rate / correction_1 * mean / (ops.sqrt(square) / root_2 + self.epsilon))

    def _moments(self, dtype: str) -> tuple[Any, float, Any, Any]:
        """Both betas, the correction of the mean, and the root of the correction of the squares, at this step."""
        ops = keras.ops
        beta_1 = ops.cast(self._at_this_step(self.beta_1), dtype)
        beta_2 = float(np.dtype(dtype).type(self.beta_2))  # as the operation takes it, so that the correction fits it
        step = ops.cast(self.iterations + 1, dtype)
        # 1 - beta ** step loses four digits in float32 at the first steps; expm1 keeps them.
        correction_1 = -ops.expm1(step * ops.log(beta_1))
        return beta_1, beta_2, correction_1, ops.sqrt(-ops.expm1(step * math.log(beta_2)))


class SGD(_TorchOptimizer):
    """PyTorch's SGD with momentum: the buffer holds only gradients, and the rate is applied to the buffer."""

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-2,
        momentum: float | Schedule = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        rate_multipliers: Mapping[str, float] | None = None,
        decay_applies: Callable[[Any], bool] = decays,
        **kwargs: Any,
    ) -> None:
        """Settings of the optimizer.

        Args:
            learning_rate: rate, or a schedule over optimizer steps.
            momentum: share of the buffer kept, or a schedule.
            weight_decay: L2: this multiple of the variable is added to its gradient (PyTorch's ``weight_decay``).
            nesterov: look ahead by one step.
            rate_multipliers: multiples of the rate by variable path; 1 where none is given.
            decay_applies: which variables decay.
            **kwargs: the base class's: ``global_clipnorm``, ``use_ema``, ``name``.
        """
        super().__init__(learning_rate, weight_decay, rate_multipliers, decay_applies, **kwargs)
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables: list[Any]) -> None:
        """Make the momentum buffer of each variable."""
        if self.built:
            return
        super().build(variables)
        self._buffers = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        ops = keras.ops
        index = self._get_variable_index(variable)
        buffer = self._buffers[index]
        dtype = keras.backend.standardize_dtype(variable.dtype)
        rate = ops.cast(learning_rate, dtype) * self.multiples[index]
        momentum = self._once_a_step(dtype, lambda dtype: ops.cast(self._at_this_step(self.momentum), dtype))
        gradient = ops.cast(gradient, dtype) + self.decays[index] * variable
        if keras.backend.backend() == "tensorflow":
            tf.raw_ops.ResourceApplyMomentum(
                var=_handle(variable),
                accum=_handle(buffer),
                lr=rate,
                grad=gradient,
                momentum=momentum,
                use_nesterov=self.nesterov,
            )
            return
        self.assign(buffer, momentum * buffer + gradient)
        change = gradient + momentum * buffer if self.nesterov else buffer
        self.assign(variable, variable - rate * change)


def _handle(variable: Any) -> Any:
    """TensorFlow's handle of a variable, Keras's or its own; under a strategy that of the present replica."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
