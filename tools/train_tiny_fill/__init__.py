"""Trains miniatures of FLUX.1-Fill (`tiny_fill`) and FLUX.1-dev (`tiny_dev`) on generated scenes.

The stages are those of FLUX.1-dev: an autoencoder, then flow-matching transformers, then guidance-distilled students.
Run `python -m tools.train_tiny_fill --help` from the project's root.
"""

import time

STARTED = time.monotonic()
"""Start of the program, before it imports anything large (seconds of the monotonic clock)."""
