"""Finished runs joined into one detector: fitting, its folder, its answers."""
