"""Does the segmenter's whole chain run? Network and training are so small that the score means nothing.

Command: keras-pneumo train experiments/smallest_segmenter.py --data data/phantom-try
Needs: nothing but a minute.
Result: none that means anything.
"""

from keras_pneumo.config import SEGMENTER as base

EXPERIMENT = base.replace(
    name="smallest_segmenter",
    encoder="resnet18",
    weights="random",
    image_size=64,
    frozen_epochs=0,
    epochs=1,
    positive_rate=(),
    learning_rate=2e-3,
)
