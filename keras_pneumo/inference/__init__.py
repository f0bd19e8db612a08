"""From a run folder and images to probabilities and masks."""
