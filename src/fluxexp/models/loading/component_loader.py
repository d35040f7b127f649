"""Loads the components of a checkpoint that have weights, and checks what their headers cannot show.

The libraries fill missing tensors with random values and continue. Here, that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from fluxexp.config.checkpoint_files import ComponentFile, component_config
from fluxexp.config.component_checks import (
    BITSANDBYTES,
    WEIGHT_COMPONENTS,
    quantization_method,
    raise_for_tensors,
)
from fluxexp.config.weight_headers import ComponentError, file_tensors, has_weights, weight_files
from fluxexp.models.loading.file_loader import load_stored_component

_WORDS = "a photo of a red cat"


def load_component(
    directory: Path,
    name: str,
    dtype: torch.dtype,
    variant: str | None,
    in_files: Mapping[str, ComponentFile],
    *,
    keeps_fp8: bool = False,
) -> torch.nn.Module:
    """Load a component on the host.

    Args:
        directory: of the checkpoint.
        name: of the component, a key of `WEIGHT_COMPONENTS`.
        dtype: of its weights. Files with other dtypes, or with several, are converted.
        variant: see `model.variant`. A component without this variant has the files without a variant.
        in_files: the components that are in single files; see `model_files`.
        keeps_fp8: whether layers of the transformer that are stored in FP8 stay as they are.

    Raises:
        ComponentError: the files do not have all tensors of the module.
        OSError, ValueError, RuntimeError: the library cannot load it.
    """
    component = WEIGHT_COMPONENTS[name]
    config = component_config(directory, name, in_files)
    if found := in_files.get(name):
        keeps_fp8 = keeps_fp8 and name == "transformer"
        return load_stored_component(
            name, config, found.tensors, [found.file], found.prefix, dtype, keeps_fp8=keeps_fp8
        )
    if quantization_method(config) == BITSANDBYTES:
        files = weight_files(directory / name, component.stem, variant)
        tensors = {key: tensor for file in files for key, tensor in file_tensors(file).items()}
        return load_stored_component(name, config, tensors, files, "", dtype)
    library = transformers if component.stem == "model" else diffusers
    used = variant if variant and has_weights(directory / name, component.stem, variant) else None
    module: torch.nn.Module
    module, info = getattr(library, component.class_name).from_pretrained(
        str(directory / name),
        dtype=dtype,
        variant=used,
        use_safetensors=True,
        low_cpu_mem_usage=True,
        output_loading_info=True,
    )
    wrong = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]]
    raise_for_tensors(name, sorted(info["missing_keys"]), (), sorted(wrong))
    if messages := info.get("error_msgs"):
        raise ComponentError(f"{name} ({component.title}): {'; '.join(map(str, messages))}", "download it again")
    return module


def check_tokenizers(pipeline: Any) -> None:
    """Check that the tokenizers of a pipeline know words and the length that CLIP can read.

    Raises:
        ComponentError: one makes only unknown and other special tokens of common words, or CLIP's has no limit.
    """
    positions = pipeline.text_encoder.config.max_position_embeddings
    if pipeline.tokenizer.model_max_length > positions:
        reason = f"tokenizer/tokenizer_config.json has no model_max_length of at most {positions}, which CLIP reads"
        raise ComponentError(reason, "download the whole repository")
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(pipeline, name)
        if set(tokenizer(_WORDS).input_ids) <= set(tokenizer.all_special_ids):
            raise ComponentError(f"{name} knows none of the words {_WORDS!r}", "download the whole repository")
