"""What `import fluxexp` offers to scripts and notebooks: read results, and make some (docs/python.md)."""
