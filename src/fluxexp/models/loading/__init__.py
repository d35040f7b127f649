"""Loads a model on a device from its config: checkpoints, random weights, and the layouts of full-size models.

A new checkpoint format belongs in `pipeline_loader.py`, and a layout that needs no download in `model_layouts.py`.
Loading must never run code from a model's directory.
"""
