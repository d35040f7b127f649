"""Reads which layers a LoRA file changes, from its header alone. Never imports torch.

A LoRA adds `scale * B @ A` to the weight of a layer: A has (rank, inputs), B has (outputs, rank). The formats differ in
the names of layers and tensors. The names of Black Forest Labs' own code (`double_blocks.0.img_attn.qkv`) are used by
kohya, XLabs and BFL; diffusers and PEFT use those of `FluxTransformer2DModel`. diffusers converts the values
(`models/lora/lora_tensors.py`); what it ignores is ignored here, too, and listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fluxexp.config.lora_names import bfl_layers, clip_layer, diffusers_layer
from fluxexp.config.model_paths import EMBEDDED, EMBEDDED_LORAS, lora_file
from fluxexp.config.weight_headers import ComponentError, Shapes, file_shapes

_PARTS = (
    ("down", ("lora_linear_layer.down.weight", "lora.down.weight", "lora_down.weight", "lora_A.weight", "down.weight")),
    ("up", ("lora_linear_layer.up.weight", "lora.up.weight", "lora_up.weight", "lora_B.weight", "up.weight")),
    ("bias", ("lora_B.bias",)),
    ("alpha", ("alpha",)),
)
"""Ends of tensor names, longer ones first."""
_REFUSED = {
    "dora_scale": "DoRA (it also changes the magnitude of weights)",
    "lora_magnitude_vector": "DoRA (it also changes the magnitude of weights)",
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".oft_": "OFT",
}
_IGNORED = re.compile(
    r"(text_encoders\.t5xxl|lora_te2_|lora_te3_|text_encoder_2\.).*|.*(position_embedding|text_projection).*"
    r"|lora_\w+\.(diff_b|diff)"
)
"""Tensors that diffusers does not load."""
_NORM = re.compile(r"(?:transformer\.)?((?:single_)?transformer_blocks\.\d+\.attn\.norm_(?:added_)?[qk]\.weight)")
_BFL_NORM = re.compile(r"(double|single)_blocks\.(\d+)\.(?:(img|txt)_attn\.)?norm\.(query|key)_norm\.scale")
_IN_BLOCKS = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.", "text_encoder.")
FORMATS = "diffusers or PEFT, kohya, XLabs, BFL"
_NAMED = 3


@dataclass(slots=True)
class LayerShape:
    """What a LoRA adds to one layer. 0: the file has no such tensor."""

    rank: int = 0
    inputs: int = 0
    outputs: int = 0
    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class LoraHeader:
    """Which layers a LoRA changes."""

    format: str
    layers: Mapping[str, LayerShape]
    """By the name of the layer: `transformer.` or `text_encoder.`, and its name in the module."""
    norms: Mapping[str, tuple[int, ...]]
    """Shapes of weights that the LoRA replaces, by their name in the transformer."""
    ignored: tuple[str, ...]
    """Tensors that diffusers does not use."""

    @property
    def changes_text(self) -> bool:
        """Whether it changes CLIP."""
        return any(name.startswith("text_encoder.") for name in self.layers)


@dataclass(slots=True)
class _Found:
    layers: dict[str, LayerShape] = field(default_factory=dict)
    norms: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def lora_header(path: str) -> LoraHeader:
    """Read the header of a LoRA file. A file that did not change is read once.

    Raises:
        ComponentError: the file is missing or damaged, or is not a LoRA for FLUX.1 in a known format.
    """
    file = lora_file(path)
    if path.startswith(EMBEDDED) and path.removeprefix(EMBEDDED) not in EMBEDDED_LORAS:
        raise ComponentError("is not an embedded LoRA", f"embedded: {', '.join(EMBEDDED_LORAS)}")
    try:
        stat = file.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ComponentError(f"cannot be read ({reason})", "give the path of a .safetensors file") from None
    if not file.is_file() or file.suffix != ".safetensors":
        hint = "give the file itself; pickled LoRAs (.bin, .pt, .ckpt) can run code and are not read"
        raise ComponentError("is not a .safetensors file", hint)
    return _header(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _header(file: Path, _size: int, _mtime_ns: int) -> LoraHeader:
    shapes = file_shapes(file)
    for mark, kind in _REFUSED.items():
        if any(mark in name for name in shapes):
            raise ComponentError(f"is a {kind}", f"use a LoRA ({FORMATS})")
    kind, found = _format(shapes), _Found()
    for name, shape in shapes.items():
        _add(found, kind, name, shape)
    if kind == "kohya":
        _ignore_attention_of_clip(found)
    found.unknown += [name for name, layer in found.layers.items() if not layer.inputs or not layer.outputs]
    if found.unknown or not (found.layers or found.norms):
        names = found.unknown or sorted(shapes)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        what = f"is not a LoRA for FLUX.1 in a known format: {', '.join(names[:_NAMED])}{more}"
        raise ComponentError(what, f"use a LoRA of the format {FORMATS}")
    return LoraHeader(kind, found.layers, found.norms, tuple(found.ignored))


def _ignore_attention_of_clip(found: _Found) -> None:
    """If layers of CLIP's MLPs are there, diffusers does not find those of its attention: they have another style of
    names after the conversion, and only one style is converted further."""
    clip = [name for name in found.layers if name.startswith("text_encoder.")]
    if any(".mlp." in name for name in clip):
        for name in clip:
            if ".self_attn." in name:
                del found.layers[name]
                found.ignored.append(name)


def _format(shapes: Shapes) -> str:
    """The format, by the same marks as in diffusers (`FluxLoraLoaderMixin.lora_state_dict`)."""
    marks = {"kohya": ".lora_down.weight", "xlabs": "processor", "bfl": "query_norm.scale", "fal": "base_model"}
    return next((kind for kind, mark in marks.items() if any(mark in name for name in shapes)), "diffusers")


def _add(found: _Found, kind: str, name: str, shape: tuple[int, ...]) -> None:
    if norm := _norm(name):
        found.norms[norm] = shape
        return
    if _IGNORED.fullmatch(name):
        found.ignored.append(name)
        return
    base, part = _split(name)
    targets = list(_layers(kind, base))
    if part is None or not targets:
        found.unknown.append(name)
    elif kind == "kohya" and not name.startswith("lora_transformer_") and not targets[0].startswith(_IN_BLOCKS):
        found.ignored.append(name)  # the converter gives these layers names that the loader does not look for
    elif part != "alpha":
        _measure(found, targets, part, shape)


def _measure(found: _Found, targets: list[str], part: str, shape: tuple[int, ...]) -> None:
    shares = [4 if target.endswith("proj_mlp") else 1 for target in targets]  # of the rows of a merged layer
    for target, share in zip(targets, shares, strict=True):
        layer = found.layers.setdefault(target, LayerShape())
        if part == "bias":
            layer.has_bias = True
        elif len(shape) != 2 or (part == "up" and shape[0] * share % sum(shares)):
            found.unknown.append(target)
        elif part == "down":
            layer.rank, layer.inputs = shape
        else:
            layer.outputs = shape[0] * share // sum(shares)


def _norm(name: str) -> str | None:
    if match := _NORM.fullmatch(name):
        return match[1]
    if match := _BFL_NORM.fullmatch(name):
        blocks = "transformer_blocks" if match[1] == "double" else "single_transformer_blocks"
        return f"{blocks}.{match[2]}.attn.norm_{'added_' if match[3] == 'txt' else ''}{match[4][0]}.weight"
    return None


def _split(name: str) -> tuple[str, str | None]:
    """The layer and the part that a tensor belongs to."""
    for part, ends in _PARTS:
        for end in ends:
            if name.endswith(f".{end}"):
                return name.removesuffix(f".{end}"), part
    return name, None


def _layers(kind: str, base: str) -> Iterator[str]:
    """The layers, with their component, that the tensors `base` of a format change."""
    if kind == "diffusers":
        if base.startswith("transformer."):
            yield base
        elif base.startswith("text_encoder."):
            yield f"text_encoder.{base.removeprefix('text_encoder.').removeprefix('text_model.')}"
        return
    if (clip := clip_layer(base)) is not None:
        yield f"text_encoder.{clip}"
    elif (plain := diffusers_layer(base)) is not None:
        yield f"transformer.{plain}"
    else:
        yield from (f"transformer.{name}" for name in bfl_layers(base))
