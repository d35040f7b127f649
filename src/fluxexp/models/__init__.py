"""FLUX families behind one interface: condition, denoise, decode."""

import os

# The libraries announce optional dependencies that this project does not use; errors still come through.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
