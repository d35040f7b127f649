"""The lines of models, by `Family.line`: a line has a model class, and a way to load it. See docs/extending.md."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

from fluxexp.imports import large_imports
from fluxexp.models.base import ContextParallelModel

if TYPE_CHECKING:
    import torch

    from fluxexp.config import RunConfig


class ModelLine(Protocol):
    """Loads the models of one line (FLUX.1, ...). The loader keeps one model, and uses it for all runs that it fits."""

    def key(self, config: RunConfig, *, takes_loras: bool) -> Hashable:
        """What a loaded model depends on, besides the device. Runs with equal keys can use one model."""
        ...

    def load(self, config: RunConfig, device: torch.device, pixels: int, *, takes_loras: bool) -> ContextParallelModel:
        """Load the model of `config`.

        Args:
            config: of the run.
            device: where the model runs.
            pixels: of the largest image to leave room for.
            takes_loras: whether LoRAs will be merged into the model.

        Raises:
            ModelError: the files are missing, damaged or of another family, or an optimization cannot be applied.
        """
        ...

    def has_room(self, model: Any, pixels: int) -> bool:
        """Whether a loaded model can make images with this many pixels without moving its weights.

        Raises:
            ModelError: no offload plan fits such images.
        """
        ...

    def start_run(self, model: Any, config: RunConfig) -> None:
        """Undo what an earlier run changed in a loaded model, and change what `config` asks for.

        Raises:
            ModelError: it cannot be changed.
        """
        ...


def _flux1() -> ModelLine:
    with large_imports("fluxexp.models.loading.flux1_line"):
        from fluxexp.models.loading.flux1_line import Flux1Line
    return Flux1Line()


LINES: dict[str, Callable[[], ModelLine]] = {"flux1": _flux1}
"""By `Family.line`. The import of a line takes seconds, so it happens when its first model is loaded."""
