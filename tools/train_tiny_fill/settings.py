"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: `steps` steps of `batch` scenes. The learning rate rises to `rate` and then falls to zero (cosine)."""

    steps: int
    batch: int
    rate: float
    ema: float
    """Decay per step of the moving average of the weights. The stage ends with the averaged weights."""
    warmup: int = 200
    """Steps in which the learning rate rises."""
    log_every: int = 50
    """Number of steps between lines of the log."""
    graph: bool = True
    """Capture the step as a CUDA graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """Meaning of a student's guidance g: classifier-free guidance with weight 1 + (g - 1) * `slope`."""

    slope: float
    usual: float
    """Most guidances in the training are between 0 and this."""
    largest: float
    """The other guidances are between `usual` and this. The training has no larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a training run."""

    seed: int = 1
    """Seed of the scenes and of the training. `dataset=shapes` has the scenes of seed 0 by default."""
    scenes: int
    """Number of scenes."""
    vae_scenes: int
    """Number of scenes for the autoencoder. It trains on these while the others are still being generated."""
    size: int = 128
    """Side of the scenes, in pixels."""
    workers: int = 16
    """Processes that generate scenes."""
    compile: bool = True
    """Compile the transformers' blocks."""
    vae: Stage
    flow: Stage
    distill: Stage
    kl: float = 1e-3
    """Weight of the KL divergence in the loss of the autoencoder."""
    edge: float = 1.0
    """Weight of the edge loss of the autoencoder."""
    prompt_dropout: float = 0.12
    """Fraction of prompts that are empty in the flow stage."""
    shift: float = 1.8
    """Timestep shift of the noise levels in training. For comparison: inference with 64 image tokens uses 1.6."""
    hole_weight: float = 3.0
    """Weight of a masked token in the loss of filling. An unmasked token has weight 1."""
    fill_guidance: Guidance = Guidance(slope=0.1, usual=40, largest=100)
    dev_guidance: Guidance = Guidance(slope=1.0, usual=8, largest=16)


FULL = Settings(
    scenes=128_000,
    vae_scenes=16_384,
    vae=Stage(steps=4000, batch=32, rate=1.2e-3, ema=0.998),
    flow=Stage(steps=32_000, batch=384, rate=1.5e-3, ema=0.999),
    distill=Stage(steps=2500, batch=384, rate=6e-4, ema=0.995),
)

CPU = Settings(
    scenes=16,
    vae_scenes=16,
    size=64,
    workers=2,
    compile=False,
    vae=Stage(steps=2, batch=4, rate=1e-3, ema=0.5, warmup=1, log_every=1),
    flow=Stage(steps=2, batch=4, rate=1e-3, ema=0.5, warmup=1, log_every=1),
    distill=Stage(steps=2, batch=4, rate=3e-4, ema=0.5, warmup=1, log_every=1),
)

PRESETS = {"full": FULL, "cpu": CPU}
