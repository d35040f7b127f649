"""fluxexp: experiments with FLUX on any number of devices."""

__version__ = "0.1.0"
