"""`python -m fluxexp.calibrate [OVERRIDES]`: measure what `optimization/step_cache=magcache` has to know of a model."""

from fluxexp.cli.calibrate_command import calibrate_main

if __name__ == "__main__":
    calibrate_main()
