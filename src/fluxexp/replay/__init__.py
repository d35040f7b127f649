"""Creates W&B runs from run directories, after a crash or for runs without tracking. Imports no torch."""

from fluxexp.replay.player import replay

__all__ = ["replay"]
