"""Measures `tiny_fill` and `tiny_dev` on scenes that training never sees: `python -m tools.evaluate_tiny_fill`."""
