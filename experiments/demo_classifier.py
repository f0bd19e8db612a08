"""Does the classifier learn in a few minutes, on two CPU cores?

The task is easier than SIIM-ACR, so that a network with random start weights can learn in that time: ResNet18 instead
of the default ResNet50, 96 pixels, and phantoms with six times SIIM's areas (`--size-scale 6` in the Makefile).

Command: make train-classifier
Needs: nothing but a few minutes on two CPU cores; the phantoms are made.
Result: AUROC 0.939 (0.848 to 0.975) on 180 phantoms; more in experiments/README.md.
"""

from keras_pneumo.config import CLASSIFIER as base

EXPERIMENT = base.replace(
    name="demo_classifier",
    encoder="resnet18",
    weights="random",
    image_size=96,
    frozen_epochs=0,
    epochs=10,
    global_batch_size=8,
    positive_rate=((0, 0.5),),
    learning_rate=1e-3,
    weight_decay=0.05,
)
