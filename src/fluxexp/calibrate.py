"""`python -m fluxexp.calibrate [OVERRIDES]`: measure the ratios for `optimization/step_cache=magcache`."""

from fluxexp.cli.calibrate_command import calibrate_main

if __name__ == "__main__":
    calibrate_main()
