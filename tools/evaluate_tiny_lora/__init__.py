"""Evaluates the embedded LoRAs on scenes outside of the training set: `python -m tools.evaluate_tiny_lora`."""
