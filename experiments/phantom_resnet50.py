"""Does ResNet50, the default network, learn from a random start as well as the demo's ResNet18?

Command: make train-classifier EXPERIMENT=experiments/phantom_resnet50.py
Needs: nothing but 45 minutes on two CPU cores; the phantoms are made.
Result: AUROC 0.958 (0.887 to 0.991) on 180 phantoms; more in experiments/README.md.
"""

from keras_pneumo.config import CLASSIFIER as base

EXPERIMENT = base.replace(
    name="phantom_resnet50",
    encoder="resnet50",
    weights="random",
    image_size=96,
    frozen_epochs=0,
    epochs=30,
    global_batch_size=8,
    positive_rate=((0, 0.5),),
    learning_rate=1e-3,
    weight_decay=0.05,
)
