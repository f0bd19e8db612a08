"""A local page on which a detector's answers are looked at, one radiograph at a time."""
