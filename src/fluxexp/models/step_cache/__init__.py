"""Step caches: rules that skip most of the transformer's blocks at some steps. docs/caches.md describes them.

To add a cache, write a class with `begin` (`StepCache`), declare its config in `config/schema.py`, and add it to
`make_step_cache`. `tests/models/test_step_cache.py` compares the caches with those of diffusers.
"""
