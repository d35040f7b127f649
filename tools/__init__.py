"""Programs that make what the project ships: run them from the project's root, as modules."""
