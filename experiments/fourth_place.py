"""Fourth place of SIIM-ACR 2019: crops, an image-level head, frozen BatchNorm.

A U-Net on ResNet34; crops of 512 from 768; 2.7 BCE + 0.9 Dice + 0.1 BCE of the head; Adam at 7.5e-5 with warm restarts
every 8 epochs, 60 epochs; the rate of positives falls from 0.8 to 0.22; the best four checkpoints predict
together, on whole images.

Command: make train-segmenter DATA=data/siim EXPERIMENT=experiments/fourth_place.py
Needs: the SIIM-ACR data, ImageNet weights, a GPU.
Result: not run yet.
"""

from keras_pneumo.config import SEGMENTER as base

EXPERIMENT = base.replace(
    name="fourth_place",
    encoder="resnet34",
    frozen_batchnorm=True,
    image_size=768,
    crop=512,
    frozen_epochs=0,
    epochs=60,
    global_batch_size=8,
    loss="2.7 bce + 0.9 dice",
    image_loss_weight=0.1,
    positive_rate=((0, 0.8), (15, 0.6), (30, 0.4), (45, 0.22)),
    learning_rate=7.5e-5,
    weight_decay=0.0,
    schedule="warm_restarts",
    restart_epochs=8,
    restart_factor=1,
    top_k=4,
)
