"""A run that has learnt nothing, and the prepared phantoms that it is explained on."""

from explain_lab import prepared, run  # noqa: F401 - fixtures
