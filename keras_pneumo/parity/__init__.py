"""The ladder: checks from pixels to scores that show whether a Keras and a PyTorch team can be compared."""
