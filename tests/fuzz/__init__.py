"""Random damage to everything that fluxexp reads. `make fuzz` runs it; see `__main__.py`."""
