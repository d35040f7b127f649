"""W&B runs made again from run directories: after a crash, or for runs made with tracking off. Imports no torch."""

from fluxexp.replay.player import replay

__all__ = ["replay"]
