"""Files, tables and worker processes: everything that touches the disk or the machine."""
