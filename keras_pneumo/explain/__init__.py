"""Heat maps of what a network looks at, and the check of what they are worth."""
