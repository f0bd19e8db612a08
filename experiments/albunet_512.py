"""First place of SIIM-ACR 2019, stage 1 of 3: the U-Net on ResNet34 ("albunet") at 512, the encoder frozen at first.

3 BCE + 1 Dice + 4 focal; Adam with weight decay 5e-6, gradients clipped to 0.1, a positive rate of 0.8. The learning
rate is 1e-4, divided by ten when validation does not improve for more than two epochs. Here the weight decay is
decoupled (AdamW); the winner's Adam added it to the gradient.

Command: make train-segmenter DATA=data/siim EXPERIMENT=experiments/albunet_512.py
Needs: the SIIM-ACR data, ImageNet weights, a GPU.
Result: not run yet; the winner's ensemble of all his networks and folds had a Dice of 0.8679 on the private board.
"""

from keras_pneumo.config import SEGMENTER as base

EXPERIMENT = base.replace(
    name="albunet_512",
    encoder="resnet34",
    image_head=False,
    image_size=512,
    frozen_epochs=2,
    frozen_learning_rate=1e-3,
    epochs=20,
    global_batch_size=4,
    positive_rate=((0, 0.8),),
    learning_rate=1e-4,
    weight_decay=5e-6,
    clip_norm=0.1,
    schedule="plateau",
    plateau_factor=0.1,
    plateau_patience=2,
    top_k=3,
)
