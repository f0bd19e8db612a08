"""Networks: keras.ops and keras.layers only, so they run on every Keras backend."""
