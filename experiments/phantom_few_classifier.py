"""Does a start from phantoms help on few real radiographs? The training on phantoms.

The recipe of few_classifier.py on 900 phantoms with pneumothoraces of SIIM-ACR's own sizes; its weights then start
few_classifier.py on the radiographs. Phantoms cost nothing, so it has more epochs.

Command: experiments/from_phantoms/train.sh PREPARED_RADIOGRAPHS OUT (all of it, five seeds)
Needs: about six minutes a seed on two CPU cores.
Result: undecided. AUROC on the radiographs +0.049 (-0.128 to +0.225) over five seeds; see experiments/README.md.
"""

from keras_pneumo.config import CLASSIFIER as base

EXPERIMENT = base.replace(
    name="phantom_few_classifier",
    encoder="resnet18",
    weights="random",
    image_size=128,
    frozen_epochs=0,
    epochs=20,
    global_batch_size=8,
    positive_rate=((0, 0.5),),
    learning_rate=1e-3,
    weight_decay=0.05,
)
