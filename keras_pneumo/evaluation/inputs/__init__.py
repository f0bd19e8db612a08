"""What is scored: the truth, submissions, and the two aligned."""
