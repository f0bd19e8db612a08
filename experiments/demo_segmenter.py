"""Does the segmenter learn to outline a pneumothorax in a few minutes, on two CPU cores?

Command: make train-segmenter
Needs: nothing but a few minutes on two CPU cores; the phantoms are made.
Result: Dice 0.924 (0.886 to 0.952) on 180 phantoms; more in experiments/README.md.
"""

from keras_pneumo.config import SEGMENTER as base

EXPERIMENT = base.replace(
    name="demo_segmenter",
    encoder="resnet18",
    weights="random",
    image_size=128,
    frozen_epochs=0,
    epochs=8,
    global_batch_size=16,
    positive_rate=((0, 0.8), (3, 0.6), (6, 0.4)),
    learning_rate=2e-3,
)
