"""From a prepared folder to batches of tensors (tf.data)."""
