"""Does the whole chain run? The network and the training are so small that the score means nothing.

Command: keras-pneumo train experiments/smallest_classifier.py --data data/phantom-try
Needs: nothing but a minute.
Result: none that means anything.
"""

from keras_pneumo.config import CLASSIFIER as base

EXPERIMENT = base.replace(
    name="smallest_classifier",
    encoder="resnet18",
    weights="random",
    image_size=64,
    frozen_epochs=1,
    epochs=1,
    global_batch_size=16,
)
