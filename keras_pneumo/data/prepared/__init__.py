"""From labelled radiographs to a prepared folder, and reading it again."""
