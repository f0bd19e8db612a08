"""A datathon team's working size: how good is ResNet50 at 512 when patients are kept apart?

The recipe is that of a datathon team: ResNet50 from ImageNet weights, one epoch with the encoder frozen, then the
one-cycle policy (arXiv 1803.09820) with rates that fall towards the stem.

Command: make train-classifier DATA=data/siim EXPERIMENT=experiments/resnet50_512.py
Needs: the SIIM-ACR data, ImageNet weights, a GPU.
Result: not run yet, for lack of the data and a GPU; experiments/README.md holds those that were.
"""

from keras_pneumo.config import CLASSIFIER as base

EXPERIMENT = base.replace(
    name="resnet50_512",
    image_size=512,
    frozen_epochs=1,
    frozen_learning_rate=1e-3,
    epochs=12,
    global_batch_size=16,
    learning_rate=3e-4,
    depth_decay=0.5,
)
