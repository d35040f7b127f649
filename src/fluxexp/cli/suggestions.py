"""What the user probably meant by a key that does not exist: a synonym, a similar key, or a key of another file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fluxexp.config.build import nearest

Keys = Mapping[str, Any]
OtherFiles = Callable[[str, str], Sequence[str]]
"""For a group and a key: the files of the group that have the key."""

SYNONYMS: Mapping[str, str] = {
    "num_inference_steps": "sampling.steps",
    "inference_steps": "sampling.steps",
    "num_steps": "sampling.steps",
    "sampling_steps": "sampling.steps",
    "guidance_scale": "sampling.guidance",
    "cfg": "sampling.guidance",
    "cfg_scale": "sampling.guidance",
    "distilled_guidance_scale": "sampling.guidance",
    "negative": "sampling.negative_prompt",
    "true_guidance_scale": "sampling.true_cfg_scale",
    "real_cfg_scale": "sampling.true_cfg_scale",
    "controlnet_conditioning_scale": "sampling.controlnet_scale",
    "conditioning_scale": "sampling.controlnet_scale",
    "controlnet_strength": "sampling.controlnet_scale",
    "controlnet_path": "model.controlnet.path",
    "num_images_per_prompt": "sampling.images_per_sample",
    "num_images": "sampling.images_per_sample",
    "num_samples": "dataset.limit",
    "max_samples": "dataset.limit",
    "denoising_strength": "sampling.strength",
    "generator": "sampling.seed",
    "random_seed": "sampling.seed",
    "noise_seed": "sampling.seed",
    "resolution": "sampling.height",
    "size": "sampling.height",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "solver": "scheduler",
    "checkpoint": "model.path",
    "checkpoint_path": "model.path",
    "ckpt": "model.path",
    "ckpt_path": "model.path",
    "model_path": "model.path",
    "single_file": "model.path",
    "unet_path": "model.files.transformer",
    "transformer_path": "model.files.transformer",
    "vae_path": "model.files.vae",
    "model_id": "model.path",
    "pretrained_model_name_or_path": "model.path",
    "lora": "lora.path",
    "loras": "lora.path",
    "lora_path": "lora.path",
    "lora_file": "lora.path",
    "lora_weights": "lora.path",
    "lora_scale": "lora.scale",
    "lora_weight": "lora.scale",
    "lora_strength": "lora.scale",
    "adapter_weights": "lora.scale",
    "prompt_embeds_scale": "redux.scale",
    "pooled_prompt_embeds_scale": "redux.pooled_scale",
    "redux_path": "redux.path",
    "ip_adapter_path": "ip_adapter.path",
    "ip_adapter_scale": "ip_adapter.scale",
    "ip_adapter_image": "dataset.references",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "mixed_precision": "model.dtype",
    "data": "dataset.path",
    "data_dir": "dataset.path",
    "data_path": "dataset.path",
    "image_dir": "dataset.path",
    "image_folder": "dataset.path",
    "input_dir": "dataset.path",
    "mask_dir": "dataset.masks",
    "padding_mask_crop": "dataset.mask_padding",
    "control_image": "dataset.controls",
    "control_dir": "dataset.controls",
    "image_reference": "dataset.references",
    "reference_image": "dataset.references",
    "reference_dir": "dataset.references",
    "caption": "dataset.prompt",
    "output": "output.dir",
    "output_dir": "output.dir",
    "output_path": "output.dir",
    "out_dir": "output.dir",
    "save_dir": "output.dir",
    "outdir": "output.dir",
    "image_format": "output.format",
    "overwrite_output_dir": "output.overwrite",
    "wandb_project": "tracking.project",
    "wandb_entity": "tracking.entity",
    "run_name": "name",
    "experiment_name": "name",
    "exp_name": "name",
    "compile": "optimization.compile_blocks",
    "torch_compile": "optimization.compile_blocks",
    "cpu_offload": "optimization.offload",
    "enable_model_cpu_offload": "optimization.offload",
    "enable_sequential_cpu_offload": "optimization.offload",
    "enable_vae_tiling": "optimization.vae_tiling",
    "teacache": "optimization/step_cache",
    "use_cache": "optimization/step_cache",
}
"""Names of diffusers and of other tools, and the key of fluxexp. A test checks that each key exists."""

_NO_COUNT = "the launcher sets the number of processes: accelerate launch --num_processes N -m fluxexp ..."
MISSING_FEATURES: Mapping[str, str] = {
    "negative_prompt_2": "the text encoders read one negative prompt: sampling.negative_prompt",
    "num_processes": _NO_COUNT,
    "num_gpus": _NO_COUNT,
    "devices": _NO_COUNT,
    "controlnet": "fluxexp has no ControlNet",
    "ip_adapter": "fluxexp has no IP-Adapter",
}
"""Names of what fluxexp does not do, with the hint."""

_SIMILAR_ELSEWHERE = 0.8
"""Similarity from which a key of another group is suggested. Below, the suggestion is more often wrong than right."""


def suggest(parts: Sequence[str], depth: int, values: Keys, groups: Sequence[str], other_files: OtherFiles) -> str:
    """Make the hint for a key that does not exist.

    Args:
        parts: of the dotted key.
        depth: how many of them exist.
        values: the composed config.
        groups: names of the config groups.
        other_files: finds files of a group that have a key.
    """
    above, wrong, below = list(parts[:depth]), parts[depth], list(parts[depth + 1 :])
    node: Any = values
    for part in above:
        node = node[part]
    siblings = [str(name) for name in node] if isinstance(node, Mapping) else []
    if depth == 0:
        siblings = sorted({*siblings, *groups})
    if hint := _known_hint(parts, wrong):
        return hint
    if depth == 1 and (files := other_files(above[0], wrong)):
        names = ", ".join(f"{above[0]}={file}" for file in files)
        return f"this key belongs to {names}: choose {'it' if len(files) == 1 else 'one of them'} in the same command"
    if near := nearest(wrong, siblings):
        return f"did you mean {'.'.join([*above, near, *below])!r}?"
    if found := _elsewhere(wrong, values):
        return f"did you mean {' or '.join(repr(key) for key in found)}?"
    return f"keys here: {', '.join(sorted(siblings))}" if siblings else f"{'.'.join(above)} is a value, not a group"


def _known_hint(parts: Sequence[str], wrong: str) -> str | None:
    name = wrong.lower().replace("-", "_")
    if name in MISSING_FEATURES:
        return MISSING_FEATURES[name]
    meant = SYNONYMS.get(name)
    return f"did you mean {meant!r}?" if meant is not None and meant != ".".join(parts) else None


def _elsewhere(wrong: str, values: Keys) -> list[str]:
    """Full names of keys whose last part is `wrong`, or else is very similar to it."""
    everywhere: dict[str, list[str]] = {}
    for name, full in _leaves(values):
        everywhere.setdefault(name, []).append(full)
    if wrong in everywhere:
        return everywhere[wrong]
    near = nearest(wrong, everywhere, _SIMILAR_ELSEWHERE)
    return everywhere[near] if near else []


def _leaves(values: Keys, path: str = "") -> Iterator[tuple[str, str]]:
    """The last part and the full path of every key."""
    for name, value in values.items():
        full = f"{path}{name}"
        yield str(name), full
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{full}.")
