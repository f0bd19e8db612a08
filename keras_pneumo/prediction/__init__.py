"""From a run folder and images to probabilities, masks and heat maps."""
