"""Loads a model on a device from its config: checkpoints, random weights, and the layouts of full-size models.

A new format of weights belongs in `stored_tensors.py` and in `config/stored_weights.py`, and a layout that needs no
download in `model_layouts.py`.
Loading must never run code from a model's directory.
"""
