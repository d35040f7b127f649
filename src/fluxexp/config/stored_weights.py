"""Says for each tensor of a component where its values are in a file, and how they are stored. Never imports torch.

Files store weights plainly, in FP8 with or without a scale, in the blocks of GGUF, or in those of bitsandbytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from fluxexp.config.bfl_names import Piece, flux_pieces, vae_pieces
from fluxexp.config.component_checks import WEIGHT_COMPONENTS, raise_for_tensors
from fluxexp.config.gguf_headers import GGUF_TYPES
from fluxexp.config.llama_cpp_names import T5_MARK, t5_pieces
from fluxexp.config.tensor_layouts import OTHER_TENSORS, Config, current_name
from fluxexp.config.weight_headers import ComponentError, Shapes, Tensors

Storage = Literal["plain", "fp8", "fp8_e5m2", "gguf", "bitsandbytes_4bit", "bitsandbytes_8bit"]

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_FP8: Mapping[str, Storage] = {"F8_E4M3": "fp8", "F8_E5M2": "fp8_e5m2"}
_SCALES = ("scale_weight", "weight_scale")
"""Names of the scale of a weight: those of ComfyUI, and those of Black Forest Labs, NVIDIA and newer ComfyUI."""
_NO_WEIGHTS = ("scale_input", "input_scale", "comfy_quant")
"""Scales of activations, which fluxexp computes itself, and descriptions of the format, which dtypes show, too."""
_BNB_4BIT = re.compile(
    r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__(nf4|fp4))"
)
_BNB_8BIT = ("SCB", "weight_format")
BITSANDBYTES_STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
"""The tensors that describe a weight of 4 bits. It has one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """One tensor of a component, in a file."""

    piece: Piece
    shape: tuple[int, ...]
    """Of the tensor in the module."""
    storage: Storage
    scale: str | None = None
    """Name of the stored scale. A weight is its FP8 values, or those of 8 bits of bitsandbytes, times their scale."""

    @property
    def is_rowwise_fp8(self) -> bool:
        """Whether fluxexp's FP8 layers can take the values as they are."""
        return self.storage == "fp8" and len(self.shape) == 2 and not self.piece.swaps_halves


def stored_weights(name: str, config: Config, tensors: Tensors) -> Mapping[str, StoredWeight]:
    """Return where each tensor of component `name` is, by its name in the module.

    Args:
        name: of the component, a key of `WEIGHT_COMPONENTS`.
        config: of the component, by which its tensors are known.
        tensors: of the file, without prefix.

    Raises:
        ComponentError: tensors are missing, unknown, of another shape, or stored in a way that fluxexp does not read.
    """
    layout = _layout(name, config)
    pieces = _pieces(name, layout, tensors)
    sources = {key: piece for key, piece in pieces.items() if piece.source in tensors}
    missing = sorted(pieces.keys() - sources.keys())
    used = {piece.source for piece in sources.values()}
    unknown = sorted(key for key in tensors.keys() - used if not _is_known(name, key, used))
    found = {key: _stored(piece, layout[key], tensors) for key, piece in sources.items()}
    storages = {weight.piece.source: weight.storage for weight in found.values()}
    wrong = [
        f"{source} {list(tensors[source].shape)} instead of {list(shape)}"
        for source, shape in sorted(_source_shapes(sources, layout).items())
        if not _fits(storages[source], shape, tensors[source].shape)
    ]
    raise_for_tensors(name, missing, unknown, wrong, len(layout))
    _require_package(name, found.values())
    return found


def _layout(name: str, config: Config) -> Shapes:
    try:
        layout = WEIGHT_COMPONENTS[name].layout(config)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ComponentError(f"{name}/config.json lacks {error}", "download the whole repository") from error
    if layout is None:
        raise ComponentError(f"{name}/config.json is of another kind than that of FLUX.1", "use a model of FLUX.1")
    return layout


def _pieces(name: str, layout: Shapes, tensors: Tensors) -> Mapping[str, Piece]:
    """The piece of each tensor, if it is there or not."""
    if name == "transformer" and "img_in.weight" in tensors:
        return flux_pieces(layout)
    if name == "vae" and "encoder.mid.block_1.conv1.weight" in tensors:
        return vae_pieces(layout)
    if name == "text_encoder_2" and T5_MARK in tensors:
        return t5_pieces(layout)
    stored = {current_name(key): key for key in tensors}
    if "shared.weight" not in stored and "encoder.embed_tokens.weight" in stored:  # two names of the same tensor of T5
        stored["shared.weight"] = stored["encoder.embed_tokens.weight"]
    return {key: Piece(source=stored.get(key, key)) for key in layout}


def _is_known(name: str, key: str, used: Iterable[str]) -> bool:
    """Whether a tensor that is not a weight belongs to one, or to a part of CLIP or T5 that is not used."""
    layer, _, kind = key.rpartition(".")
    if kind in (*_SCALES, *_NO_WEIGHTS, *_BNB_8BIT):
        return f"{layer}.weight" in used
    if state := _BNB_4BIT.search(key):
        return f"{key[: state.start()]}.weight" in used
    other = OTHER_TENSORS.get(name)
    return other is not None and other.fullmatch(current_name(key)) is not None


def _stored(piece: Piece, shape: tuple[int, ...], tensors: Tensors) -> StoredWeight:
    tensor, layer = tensors[piece.source], piece.source.removesuffix(".weight")
    scale = next((f"{layer}.{kind}" for kind in _SCALES if f"{layer}.{kind}" in tensors), None)
    if tensor.dtype in _FP8:
        if scale is not None:
            _check_scale(scale, tensors[scale].shape, tensor.shape[0])
        return StoredWeight(piece=piece, shape=shape, storage=_FP8[tensor.dtype], scale=scale)
    if tensor.dtype == "U8" and any(f"{piece.source}.{state}" in tensors for state in BITSANDBYTES_STATES):
        return StoredWeight(piece=piece, shape=shape, storage="bitsandbytes_4bit")
    if tensor.dtype == "I8" and f"{layer}.SCB" in tensors:
        return StoredWeight(piece=piece, shape=shape, storage="bitsandbytes_8bit", scale=f"{layer}.SCB")
    if tensor.dtype in _PLAIN and scale is None:
        return StoredWeight(piece=piece, shape=shape, storage="plain")
    if tensor.dtype in GGUF_TYPES - _PLAIN:
        return StoredWeight(piece=piece, shape=shape, storage="gguf")
    what = f"stores {piece.source} as {tensor.dtype}" + (f" with {scale}" if scale else "")
    hint = "use weights in bfloat16, float16, float32, FP8 (scaled or not), GGUF or bitsandbytes"
    raise ComponentError(f"{what}, which fluxexp does not read", hint)


def _check_scale(name: str, shape: tuple[int, ...], rows: int) -> None:
    """A scale is one number, or one for each row."""
    if shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
        hint = "use weights with one scale, or with one scale per row"
        raise ComponentError(f"{name} has shape {list(shape)}, but its weight has {rows} rows", hint)


def _source_shapes(pieces: Mapping[str, Piece], layout: Shapes) -> Mapping[str, tuple[int, ...]]:
    """The shapes that the stored tensors must have to hold all their pieces."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, piece in pieces.items():
        shape = layout[key]
        if piece.rows is not None:
            before = shapes.get(piece.source, (0,))
            shape = (max(before[0], piece.start + piece.rows), *shape[1:])
        shapes[piece.source] = (*shape, 1, 1) if piece.is_convolution else shape
    return shapes


def _fits(storage: Storage, expected: tuple[int, ...], actual: tuple[int, ...]) -> bool:
    if storage != "bitsandbytes_4bit":
        return expected == actual
    numbers = 1
    for length in expected:
        numbers *= length
    return actual == ((numbers + 1) // 2, 1)  # two values in each byte


def _require_package(name: str, weights: Iterable[StoredWeight]) -> None:
    if any(weight.storage == "bitsandbytes_4bit" for weight in weights) and find_spec("bitsandbytes") is None:
        reason = f"{name} has weights of 4 bits of bitsandbytes, but the package bitsandbytes is not installed"
        raise ComponentError(reason, "pip install 'fluxexp[bitsandbytes]'")
