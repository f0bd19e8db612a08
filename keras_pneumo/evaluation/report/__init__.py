"""Pages that a person reads: HTML reports with tables, charts and pictures."""
