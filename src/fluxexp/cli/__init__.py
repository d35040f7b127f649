"""The command line: Hydra composes, this package explains what is wrong with it, and hands plain configs on."""

from fluxexp.cli.main import main

__all__ = ["main"]
