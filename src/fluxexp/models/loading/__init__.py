"""Loads a model on a device from its config: checkpoints, random weights, and the layouts of full-size models."""
