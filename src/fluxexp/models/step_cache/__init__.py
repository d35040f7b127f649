"""Step caches: they leave out most of the transformer at some steps."""
