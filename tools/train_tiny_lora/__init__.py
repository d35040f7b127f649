"""Trains small LoRAs for the embedded models: two styles for `tiny_fill`, and a Control LoRA for `tiny_dev`.

Run `python -m tools.train_tiny_lora --help` from the project's root.
"""
