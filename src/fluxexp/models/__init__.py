"""Models behind one interface (`base.Model`): condition, denoise, decode.

The docstring of each package says what it is for and what may change there.
"""

import os

# The libraries announce optional dependencies that this project does not use; errors still come through.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
