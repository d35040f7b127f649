"""Synonyms lead to keys that exist, and are not keys themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fluxexp.cli.location import config_directory
from fluxexp.cli.suggestions import MISSING_FEATURES, SYNONYMS
from fluxexp.config import RunConfig
from fluxexp.config.key_types import is_text

CONF = config_directory()


def keys_of(group: str) -> set[str]:
    """The keys in all files of a group, also those of its inner groups: `path`, `files.vae`."""
    contents = [yaml.safe_load(file.read_text()) for file in (CONF / group).glob("*.yaml")]
    keys = {str(key) for content in contents for key in content}
    inner = [(key, value) for content in contents for key, value in content.items() if isinstance(value, dict)]
    return keys | {f"{key}.{last}" for key, value in inner for last in value}


@pytest.mark.parametrize(("name", "key"), SYNONYMS.items())
def test_a_synonym_names_an_existing_key_or_group(name: str, key: str) -> None:
    group, _, last = key.partition(".")
    top = yaml.safe_load((CONF / "config.yaml").read_text())
    assert last in keys_of(group) if last else key in top or Path(CONF, key).is_dir()
    assert name not in keys_of(group) or name == group
    assert name not in MISSING_FEATURES


@pytest.mark.parametrize(
    "key", ["name", "output.dir", "model.path", "dataset.prompt", "tracking.tags", "model.revision"]
)
def test_keys_that_hold_text(key: str) -> None:
    assert is_text(RunConfig, key)


@pytest.mark.parametrize(
    "key", ["seed", "sampling.steps", "output.paste", "model.seconds_per_step", "model", "x.y", ""]
)
def test_keys_that_hold_no_text(key: str) -> None:
    assert not is_text(RunConfig, key)
