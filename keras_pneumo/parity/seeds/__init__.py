"""The comparison of the two frameworks over many seeds: trainings, equivalence test, page."""
