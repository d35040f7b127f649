"""Reads the schema of the config: the keys of each group, their types, and the docstrings below them."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fluxexp.config.build import field_types
from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.config.rules import OneOf
from fluxexp.config.schema import OptimizationConfig, RunConfig


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a dataclass of the schema."""

    name: str
    hint: Any
    """Its type, with the rules of `Annotated`."""
    doc: str
    """Its docstring in one line; empty if it has none."""


@cache
def keys_of(cls: type) -> tuple[Key, ...]:
    """The keys of a dataclass in the order of the schema."""
    docs = _docs(cls)
    return tuple(Key(spec.name, field_types(cls)[spec.name], docs.get(spec.name, "")) for spec in fields(cls))


def group_types() -> dict[str, Any]:
    """The type of each field of `RunConfig`: groups and single keys."""
    return {key.name: key.hint for key in keys_of(RunConfig)}


def dataclasses_of(hint: Any) -> tuple[type, ...]:
    """The dataclasses that a hint allows; empty for a single value."""
    if is_dataclass(hint) and isinstance(hint, type):
        return (hint,)
    return tuple(cls for option in options_of(hint) if option is not hint for cls in dataclasses_of(option))


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows; a tuple with the hint itself for other types."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def without_rules(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The plain type of an `Annotated` hint, and its rules."""
    if get_origin(hint) is Annotated:
        inner, *rules = get_args(hint)
        return inner, tuple(rules)
    return hint, ()


def allowed_values(hint: Any) -> tuple[Any, ...]:
    """The values that a `Literal` or a rule `OneOf` allows; empty for other types."""
    plain, rules = without_rules(hint)
    if get_origin(plain) is Literal:
        return get_args(plain)
    return next((rule.names for rule in rules if isinstance(rule, OneOf)), ())


def doc_of(cls: type) -> str:
    """The docstring of a dataclass in one line for each paragraph."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _docs(cls: type) -> dict[str, str]:
    """The docstring of each key. Optimizations have theirs in their catalog."""
    if cls is OptimizationConfig:
        return {name: f"{one.doc} ({one.kind})." for name, one in OPTIMIZATIONS.items()}
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        docs |= dict(_own_docs(base))
    return docs


def _own_docs(cls: type) -> Iterator[tuple[str, str]]:
    """The strings below the annotated names in the body of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            yield node.target.id, " ".join(str(after.value.value).split())
