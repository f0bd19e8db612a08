"""From people's tables to cases: labels, masks as runs, patients, devices."""
