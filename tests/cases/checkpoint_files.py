"""Writes components as single files, in the layouts and formats that people download."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fluxexp.config.bfl_names import Piece, flux_pieces, vae_pieces
from fluxexp.config.component_checks import WEIGHT_COMPONENTS
from fluxexp.config.llama_cpp_names import t5_pieces
from fluxexp.config.weight_headers import read_json
from tests.cases.model_directories import Tensors, weights_of

COMFYUI_PREFIXES: Mapping[str, str] = {
    "transformer": "model.diffusion_model.",
    "vae": "vae.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}
FP8_MAX = 448.0


def tensors_of(model: Path, component: str) -> Tensors:
    """The weights of a component of a directory."""
    tensors: Tensors = load_file(weights_of(model, component))
    return tensors


def bfl_tensors(model: Path, component: str) -> Tensors:
    """The weights of a component in the layout of Black Forest Labs. Text encoders have no layout of their own."""
    tensors = tensors_of(model, component)
    if component not in ("transformer", "vae"):
        return tensors
    layout = WEIGHT_COMPONENTS[component].layout(read_json(model / component / "config.json"))
    assert layout
    pieces = (flux_pieces if component == "transformer" else vae_pieces)(layout)
    parts: dict[str, list[tuple[Piece, torch.Tensor]]] = {}
    for name, piece in pieces.items():
        parts.setdefault(piece.source, []).append((piece, tensors[name]))
    return {source: _joined(own) for source, own in parts.items()}


def _joined(parts: Iterable[tuple[Piece, torch.Tensor]]) -> torch.Tensor:
    ordered = sorted(parts, key=lambda pair: pair[0].start)
    joined = torch.cat([tensor for _, tensor in ordered])
    piece = ordered[0][0]
    if piece.swaps_halves:
        joined = torch.cat(joined.chunk(2)[::-1])
    return (joined[:, :, None, None] if piece.is_convolution else joined).contiguous()


def write(file: Path, *parts: Tensors) -> Path:
    """Write tensors as one safetensors file."""
    save_file({name: tensor.contiguous() for part in parts for name, tensor in part.items()}, file)
    return file


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """The same tensors with longer names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def complete_checkpoint(model: Path) -> Tensors:
    """All components in one file, as ComfyUI saves them."""
    scale = {f"text_encoders.{name}.logit_scale": torch.tensor(4.6) for name in ("clip_l", "t5xxl")}
    whole: Tensors = dict(scale)
    for component, prefix in COMFYUI_PREFIXES.items():
        own = bfl_tensors(model, component)
        inner = "text_model." if component == "text_encoder" else ""
        whole |= prefixed(f"{prefix}{inner}", own)
    return whole


def is_large(tensor: torch.Tensor) -> bool:
    """Whether programs that quantize would quantize a tensor: a matrix."""
    return tensor.ndim == 2


def unscaled_fp8(tensors: Tensors, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensors:
    """Every matrix cast to FP8, as in `flux1-dev-fp8-e4m3fn.safetensors`."""
    return {name: tensor.to(dtype) if is_large(tensor) else tensor for name, tensor in tensors.items()}


def scaled_fp8(tensors: Tensors, scale_name: str = "scale_weight") -> Tensors:
    """Every matrix in FP8 with one scale, as ComfyUI has it."""
    found: Tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if not is_large(tensor):
            found[name] = tensor
            continue
        scale = tensor.float().abs().max() / FP8_MAX
        found[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        found[name.replace(".weight", f".{scale_name}")] = scale.reshape(1)
        found[name.replace(".weight", ".scale_input")] = torch.ones(1)
    return found


def rowwise_fp8(tensors: Tensors, excluded: str = "nothing") -> Tensors:
    """Every matrix of the blocks in FP8 with a scale per row: `fp8r` of Black Forest Labs.

    Args:
        tensors: of a transformer.
        excluded: part of the names of matrices that are not quantized.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        if not is_large(tensor) or "blocks" not in name or excluded in name:
            found[name] = tensor
            continue
        scales = (tensor.float().abs().amax(dim=1) / FP8_MAX).clamp(min=1e-12)
        found[name] = (tensor.float() / scales[:, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        found[name.replace(".weight", ".weight_scale")] = scales
    return found


def dequantized(tensors: Tensors, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """What FP8 tensors stand for: the values times their scale, in float32, rounded once to `dtype`."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith((".weight", ".bias", ".scale")):
            continue
        layer = name.removesuffix(".weight")
        scale = next(
            (tensors[f"{layer}.{kind}"] for kind in ("scale_weight", "weight_scale") if f"{layer}.{kind}" in tensors),
            None,
        )
        is_fp8 = tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        if not is_fp8:
            found[name] = tensor
        else:
            found[name] = (tensor.float() * (1.0 if scale is None else scale.float().reshape(-1, 1))).to(dtype)
    return found


def write_gguf(file: Path, tensors: Tensors, kind: str = "Q8_0") -> Path:
    """Write a GGUF file. Matrices whose rows are whole blocks are quantized to `kind`."""
    import gguf

    writer = gguf.GGUFWriter(file, "flux")
    writer.add_array("some.words", ["a", "b"])
    quantized = getattr(gguf.GGMLQuantizationType, kind)
    block = gguf.GGML_QUANT_SIZES[quantized][0]
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if is_large(tensor) and values.shape[1] % block == 0 and kind != "F16":
            writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama_cpp_names(model: Path) -> Tensors:
    """The weights of T5 with the names of llama.cpp."""
    tensors = tensors_of(model, "text_encoder_2")
    layout = WEIGHT_COMPONENTS["text_encoder_2"].layout(read_json(model / "text_encoder_2" / "config.json"))
    assert layout
    return {piece.source: tensors[name] for name, piece in t5_pieces(layout).items()}


def dequantized_gguf(file: Path) -> Tensors:
    """The values of a GGUF file, by the package gguf."""
    import gguf

    found: Tensors = {}
    for tensor in gguf.GGUFReader(file).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = torch.from_numpy(values.copy()).reshape(tuple(reversed(tensor.shape.tolist())))
    return found


def eight_bits(tensors: Tensors, is_quantized: Callable[[str], bool]) -> tuple[Tensors, Tensors]:
    """Matrices in 8 bits of bitsandbytes (LLM.int8), and the values that they stand for."""
    from bitsandbytes.functional import int8_vectorwise_dequant

    stored, values = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if is_large(tensor) and is_quantized(name):
            absmax = tensor.float().abs().amax(dim=1)
            stored[name] = (tensor.float() / absmax[:, None] * 127).round().to(torch.int8)
            stored[name.replace(".weight", ".SCB")] = absmax
            stored[name.replace(".weight", ".weight_format")] = torch.tensor(0, dtype=torch.uint8)
            values[name] = int8_vectorwise_dequant(stored[name], absmax)
    return stored, values


def four_bits(tensors: Tensors, is_quantized: Callable[[str], bool], **options: Any) -> tuple[Tensors, Tensors]:
    """Matrices in 4 bits of bitsandbytes, as `save_pretrained` writes them, and the values that they stand for."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    stored, values = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if not is_large(tensor) or not is_quantized(name):
            continue
        packed, state = quantize_4bit(tensor.bfloat16(), **options)
        stored[name] = packed
        stored |= {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
        values[name] = dequantize_4bit(packed, state)
    return stored, values
