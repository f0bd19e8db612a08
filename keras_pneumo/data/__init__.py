"""What a radiograph is, from file to batch."""
