"""docs/configuration.md and the JSON schemas are those of the config's schema and of conf/."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from fluxexp.config.migrations import CONFIG_VERSION
from fluxexp.config.rules import Range
from fluxexp.config.schema import RunConfig
from tools.config_docs.conf_files import CONF
from tools.config_docs.json_schemas import SCHEMAS, _limits, all_schemas
from tools.config_docs.reference import PAGES, REFERENCE, type_text
from tools.config_docs.rendering import rendered
from tools.config_docs.schema_source import dataclasses_of, keys_of

GROUP_FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))


@cache
def schemas() -> dict[str, Any]:
    return all_schemas()


def problems(schema: str, values: object) -> list[str]:
    """Where `values` violate the schema, for each problem."""
    return [error.json_path for error in Draft7Validator(schemas()[schema]).iter_errors(values)]


def test_the_generated_files_are_up_to_date() -> None:
    texts = rendered()
    assert {path for path in texts if path.suffix == ".json"} == set(SCHEMAS.glob("*.json"))
    stale = [path.name for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `python -m tools.config_docs`"


def test_the_reference_has_every_key_with_type_and_meaning() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_.0-9/]+)` \| (.*?) \| (.*?) \| (.*) \|$", text, flags=re.MULTILINE)
    assert [key for key, kind, _, meaning in rows if not kind.strip() or not meaning.strip()] == []
    listed = {key for key, *_ in rows}
    for group, hint in ((key.name, key.hint) for key in keys_of(RunConfig)):
        for cls in dataclasses_of(hint):
            tags = {"family", "kind", "name"}
            assert {f"{group}.{key.name}" for key in keys_of(cls) if key.name not in tags} <= listed


def test_the_pages_about_groups_exist() -> None:
    groups = {key.name for key in keys_of(RunConfig)} | {"optimization/step_cache"}
    assert groups >= PAGES.keys()
    assert all((REFERENCE.parent / page).is_file() for pages in PAGES.values() for page in pages)


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_every_file_of_conf_is_valid_for_its_schema(file: Path) -> None:
    text = (CONF / file).read_text(encoding="utf-8")
    is_global = "@package _global_" in text or file.parent == Path()
    own = "optimization" if "@package optimization" in text else file.parent.name
    schema = "run" if is_global else own
    assert problems(schema, yaml.safe_load(text)) == []


def test_the_config_of_a_result_is_valid(compose: Callable[..., RunConfig]) -> None:
    values = json.loads(json.dumps({"config_version": CONFIG_VERSION, **asdict(compose("+experiment=fill"))}))
    assert problems("run", values) == []


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"sampling": {"stepz": 4}}, "$.sampling"),
        ({"sampling": {"steps": 0}}, "$.sampling.steps"),
        ({"sampling": {"height": 100}}, "$.sampling.height"),
        ({"sampling": {"steps": "four"}}, "$.sampling.steps"),
        ({"samplin": {}}, "$"),  # codespell:ignore
        ({"model": {"dtype": "fp16"}}, "$.model"),
    ],
)
def test_mistakes_are_marked(values: dict[str, Any], where: str) -> None:
    [found] = problems("run", values)
    assert found.startswith(where)


def test_interpolations_and_partial_files_are_allowed() -> None:
    assert problems("run", {"sampling": {"steps": "${oc.env:FLUXEXP_STEPS}"}, "dataset": {"path": "x"}}) == []


def test_a_rule_without_a_translation_is_an_error() -> None:
    assert _limits(Range(1)) == {"minimum": 1}
    with pytest.raises(TypeError, match="no JSON schema for the rule"):
        _limits(object())


def test_types_are_said_in_words() -> None:
    hints = {key.name: key.hint for key in keys_of(dataclasses_of(dict(_groups())["sampling"])[0])}
    assert type_text(hints["batch_size"]) == "whole number (at least 1) or null"
    assert type_text(hints["height"]) == "whole number (between 16 and 8192, a multiple of 16) or null"


def _groups() -> list[tuple[str, Any]]:
    return [(key.name, key.hint) for key in keys_of(RunConfig)]
