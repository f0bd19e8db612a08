"""Pneumothorax on chest radiographs: Keras twins of PyTorch's networks, and an honest referee. Research use only."""

import os

__version__ = "0.1.0"

# TensorFlow reads this when it is first imported. It leaves oneDNN off on x86 CPUs without AVX-512, where it nearly
# doubles the training speed.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# TensorFlow's C++ side calls a missing GPU an error, and buries our own lines in notices. What matters reaches us as an
# exception all the same; set the variable to 0 to see everything.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
