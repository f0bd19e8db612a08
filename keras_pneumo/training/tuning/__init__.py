"""Settings by trial: the learning-rate finder, and sweeps."""
