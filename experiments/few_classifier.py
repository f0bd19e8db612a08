"""Do Keras and PyTorch agree on real radiographs, where only 251 of them are at hand?

ResNet18 from a random start: too few images to say how good a recipe is, enough to compare two frameworks on the very
same real pixels.

Command: make compare-frameworks EXPERIMENT=experiments/few_classifier.py DATA=FOLDER
Needs: SIIM-ACR radiographs with labels.
Result: five seeds leave it undecided, AUROC differs by 0.063 (-0.070 to 0.196); more in experiments/README.md.
"""

from keras_pneumo.config import CLASSIFIER as base

EXPERIMENT = base.replace(
    name="few_classifier",
    encoder="resnet18",
    weights="random",
    image_size=128,
    frozen_epochs=0,
    epochs=8,
    global_batch_size=8,
    positive_rate=((0, 0.5),),
    learning_rate=1e-3,
    weight_decay=0.05,
)
