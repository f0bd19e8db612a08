"""First place of SIIM-ACR 2019, stage 3 of 3: a tenth of the learning rate, warm restarts, fewer positives.

The cosine schedule starts again every 8 epochs; the rate of positives falls from 0.6 to 0.4.

Command: make train-segmenter DATA=data/siim EXPERIMENT=experiments/albunet_1024_fine.py START_FROM=runs/albunet_1024
All folds: keras-pneumo train experiments/albunet_1024_fine.py --data data/siim --all-folds --start-from FOLDER_OF_FOLDS
Needs: the SIIM-ACR data, the run of albunet_1024, a GPU.
Result: not run yet; the winner averaged the three best checkpoints of five folds, with mirror images.
"""

from keras_pneumo.config import SEGMENTER as base

EXPERIMENT = base.replace(
    name="albunet_1024_fine",
    encoder="resnet34",
    image_head=False,
    image_size=1024,
    frozen_epochs=0,
    epochs=24,
    global_batch_size=2,
    positive_rate=((0, 0.6), (8, 0.5), (16, 0.4)),
    learning_rate=1e-5,
    weight_decay=5e-6,
    clip_norm=0.1,
    schedule="warm_restarts",
    restart_epochs=8,
    restart_factor=1,
    top_k=3,
)
