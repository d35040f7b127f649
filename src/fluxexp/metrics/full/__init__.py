"""`metrics=full`: scores by networks, with weights from a path or a hub. Needs the extra `metrics`.

`metric_weights` finds the weights without importing torch. `network_metrics` loads the networks.
"""
