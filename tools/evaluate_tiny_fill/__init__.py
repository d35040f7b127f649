"""Evaluates `tiny_fill` and `tiny_dev` on scenes outside of the training set: `python -m tools.evaluate_tiny_fill`."""
