"""Runs and detectors handed on: as a package with a model card, in one zip or on a model hub."""
