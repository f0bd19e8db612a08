"""Do Keras and PyTorch agree on the outlines of real pneumothoraces, where only 251 radiographs are at hand?

The U-Net on ResNet18 from a random start: too few images to say how good a recipe is, enough to compare two frameworks
on the very same real pixels.

Command: make compare-frameworks EXPERIMENT=experiments/few_segmenter.py DATA=FOLDER
Needs: SIIM-ACR radiographs with masks.
Result: five seeds leave it undecided, Dice differs by -0.005 (-0.027 to 0.016); more in experiments/README.md.
"""

from keras_pneumo.config import SEGMENTER as base

EXPERIMENT = base.replace(
    name="few_segmenter",
    encoder="resnet18",
    weights="random",
    image_size=128,
    frozen_epochs=0,
    epochs=8,
    global_batch_size=8,
    positive_rate=((0, 0.8), (4, 0.5)),
    learning_rate=2e-3,
)
