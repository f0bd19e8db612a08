"""The ladder: at which rung do a Keras and a PyTorch team part, if at all? Answered by both stacks, never by one."""
