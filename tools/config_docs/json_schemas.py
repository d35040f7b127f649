"""JSON schemas of config files, by which editors complete keys and mark mistakes.

`run.json` is for primary configs, experiments and config.yaml of results. Each group has a schema for its own files.
Any key may be absent, because a file changes only some values of what it extends. Any value may be an interpolation.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from fluxexp.config.optimization_schema import StepCacheConfig
from fluxexp.config.rules import Above, Matches, MultipleOf, OneOf, Range
from fluxexp.config.schema import RunConfig
from tools.config_docs.schema_source import (
    allowed_values,
    dataclasses_of,
    doc_of,
    group_types,
    keys_of,
    options_of,
    without_rules,
)

SCHEMAS = Path(__file__).parents[2] / "src" / "fluxexp" / "config" / "json_schemas"
Schema = dict[str, Any]
_INTERPOLATION: Schema = {"type": "string", "pattern": r"^\$\{"}
_SCALARS = {int: "integer", float: "number", bool: "boolean", str: "string"}
_HYDRA: Schema = {
    "defaults": {"type": "array", "description": "Hydra's defaults list: the files that this file extends or replaces."}
}


def all_schemas() -> dict[str, Schema]:
    """The schemas by the name of their file."""
    groups = {name: dataclasses_of(hint) for name, hint in group_types().items()}
    groups["step_cache"] = dataclasses_of(StepCacheConfig)
    found = {name: _document(classes, f"conf/{name}/*.yaml") for name, classes in groups.items() if classes}
    return {**found, "run": _run_document()}


def _document(classes: Iterable[type], title: str) -> Schema:
    """The schema of the files of one group."""
    definitions: Schema = {}
    for cls in classes:
        _define(cls, definitions)
        definitions[cls.__name__]["properties"] |= _HYDRA
    return {**_head(title), "anyOf": [_reference(cls) for cls in classes], "$defs": definitions}


def _run_document() -> Schema:
    definitions: Schema = {}
    _define(RunConfig, definitions)
    top = definitions.pop("RunConfig")
    further = {
        "hydra": {"type": "object", "description": "Hydra's own config: only hydra.sweeper.params is usual here."},
        "config_version": {"type": "integer", "description": "In config.yaml of results only."},
    }
    return {**_head("fluxexp config"), **top, "properties": top["properties"] | _HYDRA | further, "$defs": definitions}


def _head(title: str) -> Schema:
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title}


def _reference(cls: type) -> Schema:
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _define(cls: type, definitions: Schema) -> None:
    """Add the schema of a dataclass, and those of the dataclasses in it."""
    if cls.__name__ in definitions:
        return
    properties: Schema = {}
    definitions[cls.__name__] = {
        "type": "object",
        "description": doc_of(cls),
        "additionalProperties": False,
        "properties": properties,
    }
    for key in keys_of(cls):
        schema = _schema(key.hint, definitions)
        properties[key.name] = {"description": key.doc, **schema} if key.doc else schema


def _schema(hint: Any, definitions: Schema) -> Schema:
    """The schema of a value. Groups can be no interpolations."""
    if classes := dataclasses_of(hint):
        for cls in classes:
            _define(cls, definitions)
        null = [{"type": "null"}] if type(None) in options_of(hint) else []
        options = [*(_reference(cls) for cls in classes), *null]
        return {"anyOf" if len(options) > 1 else "allOf": options}  # allOf: errors name the key inside of the group
    return {"anyOf": [*(_plain(option) for option in options_of(hint)), _INTERPOLATION]}


def _plain(hint: Any) -> Schema:
    if hint is type(None):
        return {"type": "null"}
    if values := allowed_values(hint):
        return {"enum": list(values)}
    plain, rules = without_rules(hint)
    if get_origin(plain) is list:
        return {"type": "array", "items": {"anyOf": [_plain(get_args(plain)[0]), _INTERPOLATION]}}
    schema: Schema = {"type": _SCALARS[plain]}
    for rule in rules:
        schema |= _limits(rule)
    return schema


def _limits(rule: Any) -> Schema:
    """A rule of the schema in words of JSON Schema."""
    match rule:
        case Range(low, high):
            limits = {"minimum": low, "maximum": high}
            return {name: limit for name, limit in limits.items() if limit is not None}
        case Above(low):
            return {"exclusiveMinimum": low}
        case MultipleOf(base):
            return {"multipleOf": base}
        case Matches(pattern, _):
            return {"pattern": f"^(?:{pattern})$"}
        case OneOf(names):
            return {"enum": list(names)}
    raise TypeError(f"no JSON schema for the rule {rule!r}: add it here")
