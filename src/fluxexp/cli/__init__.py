"""The command line: Hydra composes configs. This package explains mistakes and passes plain configs on."""

from fluxexp.cli.main import main

__all__ = ["main"]
