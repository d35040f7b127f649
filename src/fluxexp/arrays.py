"""Type aliases for NumPy arrays. An alias fixes the dtype; the docstring gives the usual shape."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ImageArray = NDArray[np.uint8]
"""Pixels from 0 to 255: an RGB image of shape (height, width, 3), or a mask of shape (height, width)."""
BoolArray = NDArray[np.bool_]
"""A set of pixels, of shape (height, width)."""
FeatureArray = NDArray[np.float32]
"""Features of one image, of shape (dimension,), or of several images, of shape (number, dimension)."""
Float32Array = NDArray[np.float32]
"""Values in single precision, of any shape."""
Float64Array = NDArray[np.float64]
"""Values in double precision, of any shape."""
