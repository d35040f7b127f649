"""The formats of images that fluxexp writes. Readers of results accept no other, whatever the name of a file says."""

RESULT_FORMATS = ("PNG", "WEBP", "JPEG")
"""As Pillow names them."""
