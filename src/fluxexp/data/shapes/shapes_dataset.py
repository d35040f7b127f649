"""`dataset=shapes`: drawn scenes as samples. A scene is drawn when it is loaded."""

from __future__ import annotations

from PIL import Image

from fluxexp.config import schema
from fluxexp.data.dataset import SamplingColumns
from fluxexp.data.shapes.outline import outlines
from fluxexp.data.shapes.scene import draw_scene
from fluxexp.records import Sample


class Shapes:
    """The first scenes of a series. The masked region is gray in a sample's image, so that the target is hidden."""

    def __init__(self, config: schema.ShapesDatasetConfig) -> None:
        self._config = config
        self.notes: list[str] = []
        self._length = min(config.length, config.limit or config.length)

    def __len__(self) -> int:
        return self._length

    def key(self, index: int) -> str:
        """The key contains everything that the scene depends on: seed, size and index."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        config = self._config
        return f"shapes-{config.seed}-{config.width}x{config.height}-{index}"

    def identity(self, index: int) -> str:
        """Empty, because the key determines the content."""
        return ""

    def inputs(self, index: int) -> None:
        """None, because a scene has no files."""

    def known_inputs(self, index: int) -> None:
        """None, because a scene has no files."""

    def truth(self, index: int) -> None:
        """None, because a scene has no files."""

    def guidance(self, index: int) -> None:
        """None, because a scene has no settings."""

    def true_cfg_scale(self, index: int) -> None:
        """None, for the same reason."""

    sampling_columns = SamplingColumns()

    has_loras = False

    def lora(self, index: int) -> None:
        """None: no sample has a LoRA of its own."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, the same for all scenes."""
        return self._config.height, self._config.width

    def load(self, index: int) -> Sample:
        """Draw scene number `index`."""
        key = self.key(index)
        config = self._config
        number = (config.seed, index, config.height, config.width)
        scene = draw_scene(*number)
        truth = scene.truth if config.style is None else draw_scene(*number, config.style).truth
        return Sample(
            key=key,
            prompt=scene.caption,
            image=Image.fromarray(scene.masked_scene),
            mask=Image.fromarray(scene.mask),
            truth=Image.fromarray(truth),
            control_image=None if config.controls is None else Image.fromarray(outlines(scene.truth)),
            references=() if config.references is None else (Image.fromarray(scene.truth),),
            size=(config.height, config.width),
            traits=scene.traits,
        )
