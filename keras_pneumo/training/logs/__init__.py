"""Where the rows of a training go besides its own log."""
