"""A local page that shows a detector's answers, one radiograph at a time."""
