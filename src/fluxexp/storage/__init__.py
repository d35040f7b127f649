"""The run directory: layout, atomic writes, images with metadata, the manifest. Imports no torch."""
