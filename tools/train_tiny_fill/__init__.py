"""Trains fluxexp's own FLUX.1-Fill (`tiny_fill`) and FLUX.1-dev (`tiny_dev`) in miniature, on drawn scenes.

As FLUX.1-dev was made: an autoencoder, then flow-matching transformers, then their guidance-distilled students.
`python -m tools.train_tiny_fill --help` from the project's root.
"""

import time

STARTED = time.monotonic()
"""When the program began, before it imported anything large."""
