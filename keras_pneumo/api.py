"""The front door's functions; ``import keras_pneumo as kp`` gives them by name."""
