"""How good is ResNet50 at 512, a datathon team's usual size, with a split by patient?

The recipe is that of a datathon team: ResNet50 from ImageNet weights, one epoch with the encoder frozen, then the
one-cycle policy (arXiv 1803.09820) with learning rates that are lower for earlier layers.

Command: make train-classifier DATA=data/siim EXPERIMENT=experiments/resnet50_512.py
Needs: the SIIM-ACR data, ImageNet weights, a GPU.
Result: not run yet, since the data and a GPU were not available.
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
