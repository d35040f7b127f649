"""Checks each component of a checkpoint by its files: class, config, weights, vocabulary. Never imports torch.

A library fills a missing tensor with random values, and a tokenizer without vocabulary makes every word unknown. Both
give images, so a checkpoint that does not fit its own config is refused before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fluxexp.config.tensor_layouts import (
    OTHER_TENSORS,
    Layout,
    clip_layout,
    controlnet_layout,
    current_name,
    flux_layout,
    t5_layout,
    vae_layout,
)
from fluxexp.config.weight_headers import ComponentError, Shapes, check_file, read_json, tensor_shapes

BITSANDBYTES = "bitsandbytes"
"""The one quantization of directories that fluxexp loads."""
_NAMED = 3
"""Tensors that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightComponent:
    """A component with weights."""

    title: str
    class_name: str
    stem: str
    """Start of the names of its weight files."""
    layout: Layout
    prefix: str = ""
    """Start of the names of its tensors in some files. The layout is without it."""
    ignored: re.Pattern[str] | None = None
    """Names of tensors that belong to other parts of the same network."""


WEIGHT_COMPONENTS: Mapping[str, WeightComponent] = {
    "text_encoder": WeightComponent(title="CLIP", class_name="CLIPTextModel", stem="model", layout=clip_layout),
    "text_encoder_2": WeightComponent(title="T5", class_name="T5EncoderModel", stem="model", layout=t5_layout),
    "transformer": WeightComponent(
        title="FLUX", class_name="FluxTransformer2DModel", stem="diffusion_pytorch_model", layout=flux_layout
    ),
    "controlnet": WeightComponent(
        title="ControlNet", class_name="FluxControlNetModel", stem="diffusion_pytorch_model", layout=controlnet_layout
    ),
    "vae": WeightComponent(title="VAE", class_name="AutoencoderKL", stem="diffusion_pytorch_model", layout=vae_layout),
}
"""The components with weights, by directory. A ControlNet has a directory of its own, outside of the checkpoint."""
_TOKENIZERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "tokenizer": ("CLIPTokenizer", "text_encoder", ("vocab.json", "merges.txt")),
    "tokenizer_2": ("T5Tokenizer", "text_encoder_2", ("spiece.model",)),
}
"""Class, text encoder, and the files that hold the vocabulary if tokenizer.json does not."""


def component_error(path: Path, name: str, index: Mapping[str, Any], variant: str | None) -> ComponentError | None:
    """Return what is wrong with component `name` of the checkpoint at `path`; None if nothing is.

    Args:
        path: directory of the checkpoint.
        name: directory of the component.
        index: content of model_index.json.
        variant: see `model.variant`.
    """
    try:
        if not any((path / name).iterdir()):
            raise ComponentError(f"{name}/ is empty", "download the whole repository")
        if name in WEIGHT_COMPONENTS:
            _check_class(name, index, WEIGHT_COMPONENTS[name].class_name)
            check_weights(path / name, WEIGHT_COMPONENTS[name], variant)
        elif name in _TOKENIZERS:
            _check_class(name, index, _TOKENIZERS[name][0], f"{_TOKENIZERS[name][0]}Fast")
            _check_tokenizer(path, name)
        elif name == "scheduler":
            read_json(path / name / "scheduler_config.json")
    except ComponentError as error:
        return error
    return None


def _check_class(name: str, index: Mapping[str, Any], *allowed: str) -> None:
    """Compare the class in model_index.json, if it names one. A class of the model's own would be code to run."""
    if name not in index:
        return
    given = index[name]
    found = given[1] if isinstance(given, list) and len(given) == 2 else given
    if found not in allowed:
        reason = f"model_index.json says that {name} is {found or 'absent'}, but fluxexp needs {allowed[0]}"
        raise ComponentError(reason, "use a checkpoint of FLUX.1 that diffusers loads without custom code")


def check_weights(directory: Path, component: WeightComponent, variant: str | None = None) -> None:
    """Check the weights of a component against its config.

    Args:
        directory: of the component.
        component: what it must be.
        variant: see `model.variant`.

    Raises:
        ComponentError: files are missing, damaged, quantized, or do not have the tensors that the config asks for.
    """
    config = read_json(directory / "config.json")
    if method := quantization_method(config):
        if method == BITSANDBYTES:  # `checkpoint_checks.py` compares its tensors
            return
        hint = "use weights of bitsandbytes or GGUF, or those before quantization; optimization.offload saves memory"
        raise ComponentError(f"{directory.name} ({component.title}) is quantized (quant_method={method})", hint)
    shapes = {
        name.removeprefix(component.prefix): shape
        for name, shape in tensor_shapes(directory, component.stem, variant).items()
        if not (component.ignored and component.ignored.fullmatch(name))
    }
    try:
        layout = component.layout(config)
    except (KeyError, TypeError, AttributeError, IndexError):  # the library has defaults for keys: the loader compares
        return
    if layout is not None:
        compare_tensors(directory.name, shapes, layout, component.title)


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """How the weights of a component are quantized, by its config; None if they are not."""
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    return str(quantization.get("quant_method", "unknown")) if isinstance(quantization, dict) else "unknown"


def compare_tensors(name: str, shapes: Shapes, layout: Shapes, title: str) -> None:
    """Compare the tensors of a component with those that its config asks for.

    Args:
        name: of the component.
        shapes: of the tensors in its files.
        layout: of the tensors that it must have.
        title: of the component, for the error.

    Raises:
        ComponentError: some are missing, unknown, or of another shape.
    """
    found = {current_name(key): shape for key, shape in shapes.items()}
    if "shared.weight" in layout and "encoder.embed_tokens.weight" in found:  # two names of the same tensor
        found.setdefault("shared.weight", found["encoder.embed_tokens.weight"])
    other = OTHER_TENSORS.get(name)
    wrong = [
        f"{key} {list(found[key])} instead of {list(layout[key])}"
        for key in sorted(found.keys() & layout.keys())
        if found[key] != layout[key]
    ]
    unknown = sorted(key for key in found.keys() - layout.keys() if not (other and other.fullmatch(key)))
    raise_for_tensors(name, sorted(layout.keys() - found.keys()), unknown, wrong, len(layout), title)


def raise_for_tensors(
    name: str,
    missing: Iterable[str],
    unknown: Iterable[str],
    wrong: Iterable[str],
    total: int | None = None,
    title: str | None = None,
) -> None:
    """Raise a `ComponentError` that names tensors of a component, unless all are empty."""
    parts = list(_parts(list(missing), list(unknown), list(wrong), total))
    if not parts:
        return
    title = title or WEIGHT_COMPONENTS[name].title
    reason = f"{name} ({title}) does not fit its config.json: {'; '.join(parts)}"
    raise ComponentError(reason, "download the component again, with weights and config.json of one model")


def _parts(missing: list[str], unknown: list[str], wrong: list[str], total: int | None) -> Iterator[str]:
    of = "" if total is None else f" of {total}"
    if missing:
        yield f"{len(missing)}{of} tensors are missing ({_some(missing)})"
    if unknown:
        yield f"{len(unknown)} tensors are unknown ({_some(unknown)})"
    if wrong:
        yield f"{len(wrong)} tensors have another shape ({_some(wrong)})"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check_tokenizer(path: Path, name: str) -> None:
    directory = path / name
    _, encoder, vocabulary = _TOKENIZERS[name]
    read_json(directory / "tokenizer_config.json")
    whole = directory / "tokenizer.json"
    if whole.is_file():
        state = whole.stat()
        size: int | None = _vocabulary_size(whole, state.st_size, state.st_mtime_ns)
    elif missing := [file for file in vocabulary if not (directory / file).is_file()]:
        raise ComponentError(
            f"{name}/ has no vocabulary: neither tokenizer.json nor {' and '.join(missing)}",
            "download the whole repository; without a vocabulary every word is unknown",
        )
    else:
        for file in vocabulary:
            check_file(directory / file)
        size = len(read_json(directory / "vocab.json")) if "vocab.json" in vocabulary else None
    if size == 0:
        raise ComponentError(f"{name}/ has an empty vocabulary", "download the whole repository")
    rows = _vocabulary_rows(path / encoder)
    if size and rows is not None and size > rows:
        reason = f"{name}/ has {size} tokens, but {encoder} knows only {rows}"
        raise ComponentError(reason, "use tokenizer and text encoder of one model")


@lru_cache(maxsize=16)
def _vocabulary_size(tokenizer: Path, _size: int, _mtime_ns: int) -> int:
    """Number of tokens in a tokenizer.json, added ones not counted. Cached, because a sweep checks each point."""
    model = read_json(tokenizer).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return len(vocabulary) if isinstance(vocabulary, (dict, list)) else 0


def _vocabulary_rows(encoder: Path) -> int | None:
    """Number of tokens that a text encoder has embeddings for; None if its config does not say it."""
    try:
        rows = read_json(encoder / "config.json").get("vocab_size")
    except ComponentError:  # the check of the text encoder reports it
        return None
    return rows if isinstance(rows, int) else None
