"""Reads the config.yaml files of results, also those of older and newer versions of fluxexp.

The command line does not use this module: there, unknown and missing keys are errors. To add a key to `RunConfig`,
add a version with the key's default to `VERSIONS`. Then older results stay readable, and runs with the default keep
their fingerprint. Keys of the group optimization need no version: older results did not have the optimization.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fluxexp.config.build import build_leniently
from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.config.schema import RunConfig

T = TypeVar("T")
_VERSION_KEY = "config_version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The changes of one version of the config. All keys are dotted."""

    added: Mapping[str, Any] = field(default_factory=dict)
    """New keys, each with the value that older configs imply. Use the key's current name, also after a later rename."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """New names by old names."""
    removed: Sequence[str] = ()
    """Keys that no longer exist. They are ignored without a message."""


VERSIONS: Mapping[int, Version] = {
    # Configs before version 1 have no `config_version`. They may lack any of these keys.
    1: Version(
        added={
            "seed": 0,
            "model.revision": None,
            "model.weights": "pretrained",
            "model.layout": None,
            "scheduler.shift": None,
            "sampling.height": None,
            "sampling.width": None,
            "sampling.max_pixels": 1_048_576,
            "sampling.strength": 1.0,
            "sampling.max_sequence_length": None,
            "sampling.images_per_sample": 1,
            "sampling.batch_size": None,
            "dataset.limit": None,
            "dataset.placement": "fit",
            "dataset.prompt": None,
            "dataset.masks": None,
            "dataset.truths": None,
            "dataset.mask": None,
            "dataset.alpha_mask": False,
            "parallelism.mode": "auto",
            "parallelism.context_size": None,
            "parallelism.context_kind": "ulysses",
            "parallelism.schedule": "steal",
            "parallelism.device": "auto",
            "parallelism.cpu_threads": 1,
            "parallelism.expect_world_size": None,
            "metrics": {"name": "none"},
            "metrics.quality": None,
            "metrics.tolerance": None,
            "cost.usd_per_gpu_hour": None,
            "report.html": True,
            "tracking.mode": None,
            "tracking.project": "fluxexp",
            "tracking.entity": None,
            "tracking.group": None,
            "tracking.tags": [],
            "tracking.every_s": 5.0,
            "tracking.images": 32,
            "tracking.finish_timeout_s": 30.0,
            "output.dir": None,
            "output.format": "png",
            "output.quality": 95,
            "output.paste": True,
            "output.overwrite": False,
            "debug.plan": False,
            "objective": None,
        }
    ),
    2: Version(
        added={
            "model.variant": None,
            "model.sha256": None,
            "dataset.invert_mask": False,
            "dataset.mask_blur": 0.0,
            "dataset.mask_padding": None,
            "failures.retries": None,
            "failures.max_failure_rate": None,
            "failures.max_process_deaths": 3,
        }
    ),
    3: Version(
        added={
            "parallelism.join_timeout_s": 1800.0,
            "parallelism.lost_after_s": 120.0,
            "parallelism.hung_after_s": 1800.0,
            "output.retry_s": 300.0,
            "dataset.max_image_megapixels": 100.0,
            # Before, samples could use all files. Older results stay readable with their samples.
            "dataset.allowed_folders": ["/"],
        }
    ),
    4: Version(
        added={
            "sampling.true_cfg_scale": 1.0,
            "sampling.negative_prompt": None,
            "sampling.prompt_2": None,
            "sampling.controlnet_scale": 1.0,
            "sampling.control_guidance_start": 0.0,
            "sampling.control_guidance_end": 1.0,
            "sampling.control_mode": None,
            "model.controlnet": None,
            "dataset.images_are": "inputs",
            "dataset.controls": None,
            "dataset.references": None,
            "dataset.style": None,
            "lora.path": None,
            "lora.scale": 1.0,
            "lora.mixing": False,
            "ip_adapter.path": None,
            "ip_adapter.image_encoder": None,
            "ip_adapter.image_encoder_revision": None,
            "ip_adapter.scale": 1.0,
            "ip_adapter.layer_scales": None,
            "redux.path": None,
            "redux.revision": None,
            "redux.reads_prompt": True,
            "redux.scale": 1.0,
            "redux.pooled_scale": 1.0,
            "model.base": None,
            "model.files.transformer": None,
            "model.files.text_encoder": None,
            "model.files.text_encoder_2": None,
            "model.files.vae": None,
        }
    ),
    5: Version(
        added={
            "engine": {"kind": "local"},
            "output.shards": False,
            "output.shard_mib": 256,
        }
    ),
}

CONFIG_VERSION = max(VERSIONS)
"""The version of config.yaml that this fluxexp writes."""


def migrate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a config.yaml with the key names of this version, and without its version number."""
    migrated = deepcopy(dict(values))
    written_by = migrated.pop(_VERSION_KEY, 0)
    for number in sorted(VERSIONS):
        if not isinstance(written_by, int) or number > written_by:
            _apply(VERSIONS[number], migrated)
    return migrated


def read_config(values: Mapping[str, Any]) -> tuple[RunConfig, list[str]]:
    """Build the config from migrated values. Missing keys get their defaults; unknown keys are ignored.

    Returns:
        the config, and a list with a sentence about the ignored keys; an empty list if there are none.

    Raises:
        ConfigError: a key without a default is missing, or a value is not allowed.
    """
    return read_part(RunConfig, values)


def read_part(cls: type[T], values: Mapping[str, Any]) -> tuple[T, list[str]]:
    """Read like `read_config`, for a dataclass with some groups of `RunConfig`. The other groups may be unreadable."""
    off = {f"optimization.{name}": declared.off_value for name, declared in OPTIMIZATIONS.items()}
    result, ignored = build_leniently(cls, values, _defaults(VERSIONS.values()) | off)
    keys = ", ".join(ignored)
    return result, [f"config.yaml has keys that this version of fluxexp ignores: {keys}"] if ignored else []


def without_new_defaults(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` of a config group without the keys that came after version 1 and have their default.

    Fingerprints use it: a run that does not use a newer key keeps its fingerprint.
    """
    new = _defaults(version for number, version in VERSIONS.items() if number > 1)
    return {
        name: value for name, value in values.items() if f"{group}.{name}" not in new or new[f"{group}.{name}"] != value
    }


def _defaults(versions: Iterable[Version]) -> dict[str, Any]:
    return {key: value for version in versions for key, value in version.added.items()}


def _apply(version: Version, values: dict[str, Any]) -> None:
    for key in version.removed:
        _pop(values, key)
    for old, new in version.renamed.items():
        if (found := _pop(values, old)) is not _MISSING:
            _put(values, new, found)


_MISSING = object()


def _pop(values: dict[str, Any], key: str) -> Any:
    *groups, name = key.split(".")
    for group in groups:
        inner = values.get(group)
        if not isinstance(inner, dict):
            return _MISSING
        values = inner
    return values.pop(name, _MISSING)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[name] = value
