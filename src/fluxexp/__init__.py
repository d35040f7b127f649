"""fluxexp: experiments with FLUX on any number of devices."""

__version__ = "0.2.0"
