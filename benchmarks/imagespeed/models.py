"""The models that the benchmark can run: for each a config of `conf/model` with its values and inputs. Needs no torch.

Another model is another entry of `_ENTRIES`. What it needs of a sample follows from its family (`config/families.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxexp.config.families import FAMILIES, Family
from fluxexp.records import Sample

TRUE_CFG_SCALE = 4.0
"""`sampling.true_cfg_scale` of a measurement with a second pass. Its value does not change the cost."""
NEGATIVE_PROMPT = "blurry, low quality"


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """A model at two sizes: full size with random weights, and small for a CPU."""

    name: str
    """Of the config in `conf/model` at full size."""
    family_name: str
    small: str
    """Name of the config for a CPU."""
    embedded: str | None
    """Name of the embedded weights of the small model. None: small random weights."""
    guidance: float
    """The default of the library's pipeline, as the strength; 30 for Fill."""
    strength: float

    @property
    def family(self) -> Family:
        """What the model declares."""
        return FAMILIES[self.family_name]

    def layout(self, is_full_size: bool) -> str:
        """Name of the layout of random weights."""
        return next(name for name in self.family.layouts if name.startswith("small_") != is_full_size)

    def overrides(self, is_full_size: bool, has_second_pass: bool = False) -> list[str]:
        """The config of fluxexp."""
        found = ["model=" + (self.name if is_full_size else self.small), f"sampling.strength={self.strength}"]
        found += [f"sampling.guidance={self.guidance}"]
        if is_full_size:
            found += ["model.weights=random"]
        if "control_image" in self.family.required:
            found += ["dataset.controls=outlines"]
        if "references" in self.family.required:
            found += ["dataset.references=scenes"]
        if not self.family.paints_masked_region:
            found += ["output.paste=false"]
        if has_second_pass:
            found += [f"sampling.true_cfg_scale={TRUE_CFG_SCALE}", f"sampling.negative_prompt='{NEGATIVE_PROMPT}'"]
        return found

    @property
    def takes_second_pass(self) -> bool:
        """Whether the family has negative prompts and true CFG."""
        return self.family.takes_negative_prompt

    def pictures(self, sample: Sample) -> dict[str, Any]:
        """The pictures of `sample` that the family requires, by their fields."""
        pictures = {
            "image": sample.image,
            "mask": sample.mask,
            "control_image": sample.control_image,
            "references": sample.references,
        }
        return {name: picture for name, picture in pictures.items() if name in self.family.required}

    def evaluated_tokens(self, height: int, width: int) -> int:
        """Number of image tokens that the transformer sees."""
        return self.family.image_tokens(height * width) * (1 + self.family.appended_pictures)


_ENTRIES = (
    # name, family, config for a CPU, its embedded weights, guidance, strength
    ("flux_fill", "flux_fill", "tiny_fill", "tiny_fill", 30.0, 1.0),
    ("flux_dev", "flux", "tiny_dev", "tiny_dev", 3.5, 1.0),
    ("flux_img2img", "flux_img2img", "tiny_img2img", "tiny_dev", 7.0, 0.6),
    ("flux_inpaint", "flux_inpaint", "tiny_inpaint", "tiny_dev", 7.0, 0.6),
    ("flux_control", "flux_control", "small_control", None, 3.5, 1.0),
    ("flux_control_img2img", "flux_control_img2img", "small_control_img2img", None, 7.0, 0.6),
    ("flux_control_inpaint", "flux_control_inpaint", "small_control_inpaint", None, 7.0, 0.6),
    ("flux_controlnet", "flux_controlnet", "small_controlnet", None, 3.5, 1.0),
    ("flux_controlnet_img2img", "flux_controlnet_img2img", "small_controlnet_img2img", None, 7.0, 0.6),
    ("flux_controlnet_inpaint", "flux_controlnet_inpaint", "small_controlnet_inpaint", None, 7.0, 0.6),
    ("flux_redux", "flux_redux", "small_redux", None, 3.5, 1.0),
    ("flux_fill_redux", "flux_fill_redux", "small_fill_redux", None, 30.0, 1.0),
    ("flux_kontext", "flux_kontext", "small_kontext", None, 3.5, 1.0),
    ("flux_kontext_inpaint", "flux_kontext_inpaint", "small_kontext_inpaint", None, 3.5, 1.0),
)

MODELS: Mapping[str, BenchmarkModel] = {entry[0]: BenchmarkModel(*entry) for entry in _ENTRIES}
"""By name: the values of `--family`."""
