"""From truth and submissions to a board and a report; needs neither TensorFlow nor Keras."""
