"""What a training run depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of training: `steps` of `batch` scenes, the learning rate rising to `rate` and falling to zero."""

    steps: int
    batch: int
    rate: float
    ema: float
    """Decay of the running average of the weights, which is what is kept."""
    warmup: int = 200
    log_every: int = 50
    graph: bool = True
    """Capture the step as a CUDA graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """What a student's guidance number g means: classifier-free guidance of weight 1 + (g - 1) * slope."""

    slope: float
    usual: float
    """Most of the numbers g of the training are between 0 and this."""
    largest: float
    """The rest reach up to this; the students know nothing of larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a training run depends on."""

    seed: int = 1
    """Of the scenes (`dataset=shapes` shows series 0 by default) and of all that is random in the training."""
    scenes: int
    vae_scenes: int
    """How many of them the autoencoder is trained on, while the others are still being drawn."""
    size: int = 128
    workers: int = 16
    compile: bool = True
    vae: Stage
    flow: Stage
    distill: Stage
    kl: float = 1e-3
    edge: float = 1.0
    prompt_dropout: float = 0.12
    shift: float = 1.8
    """Timestep shift of the noise levels in training; 64 image tokens are sampled with 1.6."""
    hole_weight: float = 3.0
    """Weight in the loss of a token that is masked, where one that is not has 1."""
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
