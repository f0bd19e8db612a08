"""First place of SIIM-ACR 2019, stage 2 of 3: the same network at 1024, from the weights of stage 1.

This is progressive resizing. The batch of 2 is the winner's.

Command: make train-segmenter DATA=data/siim EXPERIMENT=experiments/albunet_1024.py START_FROM=runs/albunet_512
Needs: the SIIM-ACR data, the run of albunet_512, a GPU.
Result: not run yet.
"""

from keras_pneumo.config import SEGMENTER as base

EXPERIMENT = base.replace(
    name="albunet_1024",
    encoder="resnet34",
    image_head=False,
    image_size=1024,
    frozen_epochs=0,
    epochs=20,
    global_batch_size=2,
    positive_rate=((0, 0.8),),
    learning_rate=1e-4,
    weight_decay=5e-6,
    clip_norm=0.1,
    schedule="plateau",
    plateau_factor=0.1,
    plateau_patience=2,
    top_k=3,
)
