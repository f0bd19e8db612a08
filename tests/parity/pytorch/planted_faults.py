"""The table of planted faults: one wrong line each, the check of the ladder that must find it, and what must be named.

Rows are those of a list of forty ways in which Keras and PyTorch part: layers, padding, initial weights, resizing,
decoders, optimizers, losses, scores, augmentation, order. Each way that can change a number of ours is a
:class:`Fault`, planted into the package by exchanging one line; some have two. What the ladder does not see has a
``reason``, and where another test sees it, that test. ``planted.py`` plants and runs them; ``test_planted.py`` sees
that each line still stands in its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """One planted fault."""

    name: str
    row: int
    """Of the list of differences; 0 for a fault on PyTorch's side."""
    what: str
    """What is wrong, as a part of a sentence."""
    file: str
    """Path in the checkout."""
    line: str
    """The line as it stands, without its indentation."""
    planted: str
    """The line in its place."""
    check: str
    """Title of the check that must be the first to fail; "" where no check sees the fault."""
    first: str = ""
    """A regular expression for the array (layer, tensor, step) that the failing check must name first."""
    plan: Literal["classifier", "unet", "deep"] = "classifier"
    """The ladder that shows it: of a ResNet18 classifier, of a U-Net, or of a ResNet50 classifier."""
    reason: str = ""
    """Why no check sees it."""
    test: str = ""
    """The test that sees it instead, a pytest node."""

    @property
    def side(self) -> str:
        """The framework whose code is changed."""
        return "Keras" if self.file.startswith("keras_pneumo/") else "PyTorch"


@dataclass(frozen=True)
class Unplanted:
    """A row of the list of which nothing can be planted here."""

    row: int
    what: str
    reason: str


RESNET = "keras_pneumo/models/resnet.py"
UNET = "keras_pneumo/models/unet.py"
BATCH_NORM = "keras_pneumo/models/batch_norm.py"
LOSSES = "keras_pneumo/training/losses.py"
OPTIMIZERS = "keras_pneumo/training/optimizers.py"
GEOMETRY = "keras_pneumo/data/radiographs/geometry.py"
AUGMENTATION = "keras_pneumo/data/batches/augmentation.py"
SETTINGS = 'BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}'
UP = 'x = keras.layers.UpSampling2D(2, data_format="channels_last", interpolation="nearest", name=f"{name}-up")(x)'

KERAS_FAULTS = (
    Fault(
        "stride", 1, "a bottleneck's stride is on its first 1x1 convolution",
        RESNET,
        'x = convolution(x, width, 1, name=f"{name}-conv1")',
        'x, stride = convolution(x, width, 1, stride=stride, name=f"{name}-conv1"), 1',
        "Forward", r"layer2\.0\.conv1", plan="deep",
    ),
    Fault(
        "bias", 2, "convolutions have a bias",
        RESNET, "use_bias=False,", "use_bias=True,",
        "Initial weights", r"conv1\.bias",
    ),
    Fault(
        "epsilon", 3, "BatchNorm's epsilon is Keras's 1e-3",
        BATCH_NORM, SETTINGS, SETTINGS.replace("1e-5", "1e-3"),
        "Forward", "bn1",
    ),
    Fault(
        "epsilon_resnet", 3, "BatchNorm's epsilon is keras.applications' 1.001e-5",
        BATCH_NORM, SETTINGS, SETTINGS.replace("1e-5", "1.001e-5"),
        # It moves an output by less than float32 rounds, 5e-9 over the variance: only float64 shows it.
        "Gradients", "loss",
    ),
    Fault(
        "momentum", 4, "BatchNorm's momentum is Keras's 0.99",
        BATCH_NORM, SETTINGS, SETTINGS.replace("0.9", "0.99"),
        "BatchNorm statistics", r"bn1\.running_mean",
    ),
    Fault(
        "running_variance", 5, "the running variance takes in the biased variance, by Keras's own layer",
        BATCH_NORM, "return self._fused(inputs, learns)", "return super().call(inputs, training=learns)",
        "BatchNorm statistics", r"(bn1|layer1\..*)\.running_var",
    ),
    Fault(
        "caffe", 6, "images are normalised as caffe's: blue first, 0 to 255, mean only",
        "keras_pneumo/models/preprocessing.py",
        "return (image - mean) / std  # (..., 1) against (3,) makes the three channels",
        "return 255 * (image - mean[::-1])",
        "Normalisation", "image 0",
    ),
    Fault(
        "imagenet_set", 7, "the second set of ImageNet weights is loaded in place of the first",
        "keras_pneumo/models/imagenet.py",
        "state = imagenet_weights(encoder, str(weights), location).state",
        'state = imagenet_weights(encoder, "imagenet_v2", location).state',
        "", reason="no check loads ImageNet's weights, which would have to be downloaded; a run's record names the set",
        test="tests/models/test_imagenet.py::test_imagenet_weights_by_name_go_into_the_encoder_only",
    ),
    Fault(
        "glorot", 8, "convolutions start glorot uniform",
        RESNET,
        'kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),',
        'kernel_initializer="glorot_uniform",',
        "Initial weights", r"conv1\.weight",
    ),
    Fault(
        "transposed", 9, "the decoder enlarges by a transposed convolution of kernel 2",
        UNET, UP, 'x = keras.layers.Conv2DTranspose(x.shape[-1], 2, 2, name=f"{name}-up")(x)',
        "Initial weights", r"decoder\.blocks\.0\.up\.weight", plan="unet",
    ),
    Fault(
        "same_padding", 10, "stride-2 convolutions pad the bottom and right, Keras's \"same\"",
        RESNET,
        'same = stride == 1  # then "same" pads alike on all sides; at stride 2 Keras would pad the bottom and right '
        "only",
        "same = True",
        "Forward", "conv1",
    ),
    Fault(
        "transposed_same", 11, "the decoder enlarges by a transposed convolution of kernel 3 and \"same\" padding",
        UNET, UP, 'x = keras.layers.Conv2DTranspose(x.shape[-1], 3, 2, "same", name=f"{name}-up")(x)',
        "Initial weights", r"decoder\.blocks\.0\.up\.weight", plan="unet",
    ),
    Fault(
        "pool_padding", 12, "the max-pool pads the bottom and right only",
        RESNET,
        'x = keras.layers.ZeroPadding2D(1, data_format="channels_last", name="maxpool-pad")(x)',
        'x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), data_format="channels_last", name="maxpool-pad")(x)',
        "Forward", "maxpool",
    ),
    Fault(
        "bilinear", 13, "the decoder enlarges bilinearly",
        UNET, UP, UP.replace("nearest", "bilinear"),
        # The deepest map has one pixel at this size, which any way of enlarging repeats.
        "Forward", r"decoder\.blocks\.1\.concatenate", plan="unet",
    ),
    Fault(
        "resizing", 14, "radiographs are reduced without antialiasing (cv2 INTER_LINEAR)",
        GEOMETRY,
        "way = cv2.INTER_AREA if len(square) > size else cv2.INTER_LINEAR", "way = cv2.INTER_LINEAR",
        # 512 is half of 1024, where linear interpolation takes the mean of four pixels, as area does.
        "Resizing", r"file 0 \(dcm\) at 256",
    ),
    Fault(
        # For trainings: prepare makes both teams' pixels, so the fault above changes what both see.
        "resizing_at_load", 14, "a training reduces the 512-pixel images without antialiasing when it reads them",
        "keras_pneumo/data/batches/images.py",
        "return self.images[row].reshape(self.size, self.size)",
        'return __import__("cv2").resize(_read(self.paths[index].replace(f"images_{self.size}/", "images_512/"), 512), '
        "(self.size, self.size))",
        "", reason="the ladder's prepared images have one size; the fault is for compare-frameworks",
    ),
    Fault(
        "antialiased", 15, "radiographs are reduced by Pillow's antialiased bilinear filter in place of area",
        GEOMETRY,
        "return cv2.resize(square, (size, size), interpolation=way)",
        'return np.array(__import__("PIL.Image").Image.fromarray(square).resize((size, size), 2))',
        "Resizing", r"file 0 \(dcm\) at 512",
    ),
    Fault(
        "mask_nearest", 16, "masks are reduced by nearest neighbour",
        GEOMETRY,
        "share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)",
        "share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_NEAREST)",
        "Resizing", r"mask \d+ at \d+",
    ),
    Fault(
        "fast_dct", 17, "JPEG is decoded with TensorFlow's default, the fast DCT",
        "keras_pneumo/data/radiographs/plain.py",
        "pixels = np.array(picture)",
        'pixels = __import__("tensorflow").io.decode_jpeg(plain.frame, dct_method="INTEGER_FAST").numpy()[..., 0]',
        "DICOM pixels", r"file 0 \(dcm\)",
    ),
    Fault(
        "decoder", 18, "baseline JPEG is decoded by pylibjpeg in place of Pillow",
        "keras_pneumo/data/radiographs/decoders.py",
        'JPEG_BASELINE: ("pillow", "pillow"),', 'JPEG_BASELINE: ("pylibjpeg", "pylibjpeg-libjpeg"),',
        "DICOM pixels", r"file 0 \(dcm\)",
    ),
    Fault(
        "adam_epsilon", 19, "Adam's epsilon is Keras's: 1e-7, before the bias correction",
        OPTIMIZERS, "epsilon=self.epsilon * root_2,", "epsilon=1e-7,",
        "Optimizer step", r"conv1\.weight",
    ),
    Fault(
        "decay", 20, "the weight decay is Keras's 0.004, whatever the experiment says",
        OPTIMIZERS, '"weight_decay": experiment.weight_decay,', '"weight_decay": 0.004,',
        "What learns", r"conv1\.weight",
    ),
    Fault(
        "adam_l2", 21, "AdamW's decay is added to the gradient",
        OPTIMIZERS,
        "self.assign(variable, variable * (1.0 - rate * self.decays[index]))",
        "gradient = gradient + self.decays[index] * variable",
        "Optimizer step", r"conv1\.weight",
    ),
    Fault(
        "sgd_decoupled", 22, "SGD's decay is decoupled from the gradient, as Keras's",
        OPTIMIZERS,
        "gradient = ops.cast(gradient, dtype) + self.decays[index] * variable",
        "gradient, _ = "
        "ops.cast(gradient, dtype), self.assign(variable, variable * (1.0 - rate * self.decays[index]))",
        "Optimizer step", r".+",
    ),
    Fault(
        "sgd_rate", 23, "SGD keeps the rate inside its momentum, as Keras's",
        OPTIMIZERS,
        "gradient = ops.cast(gradient, dtype) + self.decays[index] * variable",
        "gradient, rate = "
        "rate * (ops.cast(gradient, dtype) + self.decays[index] * variable), ops.cast(1.0, dtype)",
        "Optimizer step", r"conv1\.weight",
    ),
    Fault(
        "decay_on_vectors", 24, "BatchNorm and biases decay too",
        OPTIMIZERS, "return len(variable.shape) > 1", "return True",
        "What learns", r"bn1\.weight",
    ),
    Fault(
        "clipping", 25, "each gradient is clipped by its own norm",
        OPTIMIZERS, '"global_clipnorm": experiment.clip_norm,', '"clipnorm": experiment.clip_norm,',
        "Settings of recipes", r"epoch 1: conv1\.weight",
    ),
    Fault(
        "ema", 26, "the average of weights has Keras's momentum 0.99, whatever the experiment says",
        OPTIMIZERS, '"ema_momentum": experiment.ema or 0.99,', '"ema_momentum": 0.99,',
        "Settings of recipes", r"epoch 1: conv1\.weight",
    ),
    Fault(
        "clipped_bce", 27, "the cross-entropy is that of clipped probabilities",
        LOSSES,
        "return -truth * keras.ops.log_sigmoid(logits) - (1.0 - truth) * keras.ops.log_sigmoid(-logits)",
        # Keras takes the logits back from a sigmoid's own tensor, so it is handed another one.
        "return keras.ops.binary_crossentropy(truth, 1.0 * keras.ops.sigmoid(logits))",
        "Loss", "bce",
    ),
    Fault(
        "batch_dice", 28, "the soft Dice is taken over the whole batch",
        LOSSES,
        "return 1.0 - (2.0 * overlap + smoothing) / (total + smoothing)",
        "return 1.0 - (2.0 * keras.ops.sum(overlap) + smoothing) / (keras.ops.sum(total) + smoothing) + 0.0 * total",
        "Loss", "dice",
    ),
    Fault(
        "epoch_loss", 29, "the loss of an epoch is the mean of its batches",
        "keras_pneumo/training/callbacks.py",
        "state.loss_sum += loss * step.images",
        "state.loss_sum += loss * sum(self.sizes) / len(self.sizes)",
        "Loss of an epoch", "plain, epoch 1",
    ),
    Fault(
        "auc_thresholds", 30, "AUROC is Keras's, from 200 thresholds",
        "keras_pneumo/evaluation/scoring/metrics.py",
        "return float((rank_sum - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))",
        'return float(__import__("keras").metrics.AUC()(truth, probability))',
        "Validation scores", "AUROC, .*",
    ),
    Fault(
        "frozen_statistics", 31, "a frozen BatchNorm still takes the batch's statistics, as requires_grad=False does",
        BATCH_NORM, "learns = bool(training) and self.trainable", "learns = bool(training)",
        "Settings of recipes", r"epoch 1: bn1\.running_mean",
    ),
    Fault(
        "replica_statistics", 32, "each replica's BatchNorm takes its own images' statistics",
        "keras_pneumo/models/synchronized.py",
        "sum_over_replicas(tf.concat([count[None], count * mean, squares + count * mean**2], 0)),",
        "tf.concat([count[None], count * mean, squares + count * mean**2], 0),",
        "", reason="the ladder runs on one device",
        test="tests/models/test_synchronized.py::test_two_parts_have_the_statistics_of_the_whole",
    ),
    Fault(
        "leaky_relu", 33, "the stem's ReLU leaks, with Keras's slope 0.3",
        RESNET, 'x = keras.layers.ReLU(name="relu")(x)', 'x = keras.layers.ReLU(negative_slope=0.3, name="relu")(x)',
        "Forward", "relu",
    ),
    Fault(
        "reflect", 34, "what a shift or rotation leaves open is filled by reflection",
        AUGMENTATION, "borderMode=cv2.BORDER_CONSTANT,", "borderMode=cv2.BORDER_REFLECT,",
        "Augmentation", r"image \d",
    ),
    Fault(
        "rotation_range", 34, "the rotation is drawn as a fraction of 2 pi",
        AUGMENTATION, "signed[:, 4] * settings.rotate,", "signed[:, 4] * settings.rotate / 360,",
        "Drawn parameters", "rotate",
    ),
    Fault(
        "buffer", 35, "images are shuffled within a buffer",
        "keras_pneumo/data/batches/order.py",
        "return generator.permutation(n)",
        "return np.concatenate([generator.permutation(part) for part in np.array_split(np.arange(n), -(-n // 16))])",
        "Order of images", "epoch 1: images",
    ),
    Fault(
        "plateau", 36, "a plateau's least improvement is absolute",
        "keras_pneumo/training/schedules.py",
        'threshold_mode: Literal["rel", "abs"] = "rel"', 'threshold_mode: Literal["rel", "abs"] = "abs"',
        "Schedules of recipes", "plateau of a score that rises",
    ),
    Fault(
        "epoch_schedule", 37, "the schedule moves once an epoch",
        OPTIMIZERS,
        "steps = np.arange(total_steps)",
        "steps = np.arange(total_steps) // (epoch_steps or total_steps) * (epoch_steps or total_steps)",
        "Schedules of recipes", "cosine: rate",
    ),
    Fault(
        "layout", 40, "kernels are handed over as (out, in, w, h)",
        "keras_pneumo/models/weights.py",
        "_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}", "_AXES = {4: (3, 2, 1, 0), 2: (1, 0), 1: (0,)}",
        "Forward", "conv1",
    ),
)  # fmt: skip

UNPLANTED = (
    Unplanted(38, "TF32", "only GPUs compute in it, and no check runs on one; both teams have it on for products too"),
    Unplanted(39, "mixed precision", "compared on a GPU only; without one every check computes in float32 or float64"),
)

LADDER = "experiments/torch_team/ladder.py"
NETWORKS = "experiments/torch_team/ladder_networks.py"
FILES = "experiments/torch_team/ladder_files.py"
TRAINING = "experiments/torch_team/training.py"

PYTORCH_FAULTS = (
    Fault(
        "torch_monochrome1", 0, "MONOCHROME1 is not inverted",
        LADDER,
        'return 255 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values', "return values",
        "DICOM pixels", r"file \d+ \(dcm\)",
    ),
    Fault(
        "torch_resizing", 0, "images are reduced without antialiasing (cv2 INTER_LINEAR)",
        LADDER,
        "else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)", "else cv2.resize(image, (size, size))",
        "Resizing", r"file 0 \(dcm\) at 256",
    ),
    Fault(
        "torch_normalisation", 0, "the standard deviations are those of CIFAR-10",
        LADDER,
        "tensor = transforms.normalize(grey.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])",
        "tensor = transforms.normalize(grey.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.247, 0.243, 0.262])",
        "Normalisation", "image 0",
    ),
    Fault(
        "torch_align_corners", 0, "the affine map aligns corners",
        LADDER,
        "grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)",
        "grid = functional.affine_grid(theta, list(pixels.shape), align_corners=True)",
        "Augmentation", r"image \d",
    ),
    Fault(
        "torch_bilinear", 0, "smp's decoder enlarges bilinearly",
        NETWORKS,
        'return smp.Unet(encoder, encoder_weights=None, classes=1, aux_params={"classes": 1, "dropout": 0.0})',
        'return smp.Unet(encoder, encoder_weights=None, classes=1, aux_params={"classes": 1, "dropout": 0.0}, '
        'decoder_interpolation="bilinear")',
        "Forward", r"decoder\.blocks\.1\.concatenate", plan="unet",
    ),
    Fault(
        "torch_focal", 0, "the focal loss's exponent is 1",
        NETWORKS, '"focal": ((1 - right) ** 2 * entropy).mean(1),', '"focal": ((1 - right) * entropy).mean(1),',
        "Loss", "focal",
    ),
    Fault(
        "torch_adam_epsilon", 0, "AdamW's epsilon is 1e-6",
        NETWORKS,
        'torch.optim.SGD(groups, lr=1.0, momentum=0.9) if kind == "sgd" else torch.optim.AdamW(groups, lr=1.0)',
        'torch.optim.SGD(groups, lr=1.0, momentum=0.9) if kind == "sgd" else '
        "torch.optim.AdamW(groups, lr=1.0, eps=1e-6)",
        "Optimizer step", ".+",
    ),
    Fault(
        "torch_linear_cycle", 0, "the one-cycle policy anneals linearly",
        NETWORKS, 'total_steps=plan["steps"],', 'total_steps=plan["steps"], anneal_strategy="linear",',
        "Schedule", r"plan 1: rate",
    ),
    Fault(
        "torch_zero_grad", 0, "gradients of earlier steps are not cleared",
        NETWORKS, "optimizer.zero_grad()", "pass",
        "Training", r"step [2-5]",
    ),
    Fault(
        "torch_clipping", 0, "each gradient is clipped by its own norm",
        TRAINING,
        "torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)",
        "[torch.nn.utils.clip_grad_norm_(parameter, recipe.clip_norm) for parameter in network.parameters()]",
        "Settings of recipes", r"epoch 1: conv1\.weight",
    ),
    Fault(
        "torch_frozen_statistics", 0, "a frozen BatchNorm takes in the batch's statistics",
        TRAINING, "module.eval()", "pass",
        "Settings of recipes", r"epoch 1: bn1\.running_mean",
    ),
    Fault(
        "torch_epoch_loss", 0, "the sum of an epoch's losses counts a small batch as much as a large one",
        TRAINING, "total += loss.detach() * count", "total += loss.detach() * 8",
        "Loss of an epoch", r"plain, epoch 1",
    ),
    Fault(
        "torch_best_epoch", 0, "of equal epochs the later one is the best",
        TRAINING,
        "better = bool(np.isfinite([score, loss]).all()) and (score, -loss) > (self.score, -self.loss)",
        "better = bool(np.isfinite([score, loss]).all()) and (score, -loss) >= (self.score, -self.loss)",
        "Choice of epochs", "best so far",
    ),
    Fault(
        "torch_rows_first", 0, "run lengths go along the rows",
        FILES,
        "edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])))",
        "edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(np.int8), [0]])))",
        "Rule of masks", "masks",
    ),
)  # fmt: skip

FAULTS = (*KERAS_FAULTS, *PYTORCH_FAULTS)
