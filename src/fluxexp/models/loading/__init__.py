"""Loads a model on a device from its config: checkpoints and random weights.

A new format of weights belongs in `stored_tensors.py` and in `config/stored_weights.py`, and a layout that needs no
download in `config/model_layouts.py`.
Loading must never run code from a model's directory.
"""

import logging

# On some CPUs bitsandbytes, which diffusers imports if it is installed, warns that an optional kernel is missing.
# fluxexp dequantizes weights and never calls this kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
