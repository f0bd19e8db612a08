"""Several devices or hosts: the only place that knows tf.distribute."""
