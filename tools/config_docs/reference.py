"""Writes docs/configuration.md: every key with its type, its default, its meaning and the page about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from fluxexp.config.optimization_schema import StepCacheConfig
from fluxexp.config.rules import Above, Matches, MultipleOf, Range
from tools.config_docs.conf_files import chosen, comments_of, files_of, group_comment, own_keys, purpose_of, values_of
from tools.config_docs.schema_source import (
    allowed_values,
    dataclasses_of,
    doc_of,
    group_types,
    keys_of,
    options_of,
    without_rules,
)

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"
PAGES: Mapping[str, tuple[str, ...]] = {
    "model": ("models.md", "controlnet.md"),
    "lora": ("lora.md",),
    "redux": ("pictures.md",),
    "ip_adapter": ("pictures.md",),
    "sampling": ("prompts.md", "inputs.md"),
    "dataset": ("inputs.md",),
    "engine": ("ray.md",),
    "parallelism": ("context.md", "scale.md"),
    "failures": ("faults.md",),
    "optimization": ("optimization.md", "memory.md", "caches.md"),
    "optimization/step_cache": ("caches.md",),
    "metrics": ("metrics.md",),
    "report": ("report.md",),
    "output": ("run-directory.md", "storage.md"),
}
"""The pages about each group, in docs/."""
_HEAD = """\
# Configuration reference

Every key of the config. Set a key with `GROUP.KEY=VALUE`, for example `sampling.steps=8`. Choose another file of a
group with `GROUP=FILE`, for example `dataset=folder`. `python -m fluxexp --help` prints the same keys with the values
of your command. An unknown key or a value that is not allowed is an error before anything is loaded.

`python -m tools.config_docs` writes this page from `src/fluxexp/config/*_schema.py` and from `conf/`.
[Editors](editors.md) complete and check the keys in your own files.

"""
LARGEST_SEED = 2**63 - 1
_SCALARS = {int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "null"}


def reference() -> str:
    """The text of the page."""
    groups = {name: hint for name, hint in group_types().items() if dataclasses_of(hint)}
    parts = [_HEAD, *_single_keys()]
    for name, hint in groups.items():
        parts.extend(_group(name, dataclasses_of(hint)))
        if name == "optimization":
            parts.extend(_group("optimization/step_cache", dataclasses_of(StepCacheConfig)))
    parts.extend(_experiments())
    return "".join(parts).rstrip("\n") + "\n"


def _single_keys() -> Iterator[str]:
    hints = group_types()
    yield "## Keys without a group\n\n"
    rows = (
        (f"`{name}`", type_text(hints[name]), _value(value), _sentence(comment)) for name, value, comment in own_keys()
    )
    yield _table(("key", "type", "default", "meaning"), rows)


def _group(group: str, variants: Iterable[type]) -> Iterator[str]:
    yield f"## {group}\n\n"
    comment = group_comment(group)
    pages = ", ".join(f"[{page.removesuffix('.md')}]({page})" for page in PAGES.get(group, ()))
    about = [_sentence(comment)] if comment else []
    yield " ".join([*about, f"More: {pages}."] if pages else about) + "\n\n"
    yield _table(("file", "what it chooses"), _file_rows(group))
    variants = tuple(variants)
    tag = next((key.name for key in keys_of(variants[0]) if allowed_values(key.hint)), "")
    for cls in variants:
        yield from _variant(group, cls, tag if len(variants) > 1 else None)


def _file_rows(group: str) -> Iterator[tuple[str, ...]]:
    for name in files_of(group):
        mark = " (default)" if name == chosen(group) else ""
        yield f"`{group}={name}`{mark}", purpose_of(group, name)


def _variant(group: str, cls: type, tag: str | None) -> Iterator[str]:
    """The keys of one kind of a group. Its key `tag` says which kind it is; None: there is only one kind."""
    names = _files_with(group, cls)
    if tag is not None:
        tags = next(allowed_values(key.hint) for key in keys_of(cls) if key.name == tag)
        named = f"`{tag}: {tags[0]}`" if len(tags) == 1 else "other families"
        yield f"### {group} with {named}\n\n"
    yield f"{doc_of(cls)}\n\n"
    values = values_of(group, names[0]) if names else {}
    yield _table(("key", "type", f"value in `{names[0]}`" if names else "value", "meaning"), _rows(group, cls, values))


def _files_with(group: str, cls: type) -> list[str]:
    """The files of a group that have the keys of `cls`, the default first."""
    own = {key.name for key in keys_of(cls)}
    tags = {key.name: allowed_values(key.hint) for key in keys_of(cls) if key.name in ("kind", "name", "family")}
    fitting = []
    for name in files_of(group):
        values = values_of(group, name)
        tagged = all(values.get(tag) in allowed for tag, allowed in tags.items() if allowed)
        if values.keys() <= own and tagged:
            fitting.append(name)
    return fitting


def _rows(group: str, cls: type, values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, ...]]:
    comments = comments_of(group)
    prefix = group.replace("/", ".")
    for key in keys_of(cls):
        path = f"{above}{key.name}"
        if len(allowed_values(key.hint)) == 1:  # the heading says it
            continue
        nested = dataclasses_of(key.hint)
        value = values.get(key.name)
        of_group = f"See `{prefix}.{above[:-1]}`" if above else ""
        own = key.doc or (doc_of(nested[0]) if len(nested) == 1 else "")
        meaning = _sentence(own or comments.get(path, "") or of_group)
        if len(nested) == 1:
            yield f"`{prefix}.{path}`", "group" + " or null" * (type(None) in options_of(key.hint)), "", meaning
            yield from _rows(group, nested[0], value or {}, f"{path}.")
        else:
            shown = _value(value) if key.name in values else ""
            yield f"`{prefix}.{path}`", type_text(key.hint) if not nested else "group or null", shown, meaning


def _experiments() -> Iterator[str]:
    yield "## experiment\n\n"
    yield "A file that sets keys of several groups. Add it with `+experiment=FILE`. Your own keys win.\n\n"
    rows = ((f"`+experiment={name}`", purpose_of("experiment", name)) for name in files_of("experiment"))
    yield _table(("file", "what it does"), rows)


def type_text(hint: Any) -> str:
    """The type of a value in words."""
    return " or ".join(dict.fromkeys(_option(option) for option in options_of(hint)))


def _option(hint: Any) -> str:
    if values := allowed_values(hint):
        return ", ".join(f"`{value}`" for value in values)
    plain, rules = without_rules(hint)
    if get_origin(plain) is list:
        return f"list of {type_text(get_args(plain)[0])}"
    limits = [_rule(rule) for rule in rules]
    return f"{_SCALARS[plain]} ({', '.join(limits)})" if limits else _SCALARS[plain]


def _rule(rule: Any) -> str:
    if isinstance(rule, MultipleOf):
        return f"a multiple of {rule.base}"
    if isinstance(rule, Matches):
        return rule.meaning
    if isinstance(rule, Range) and rule.high == LARGEST_SEED:
        return f"{rule.low:g} to 2^63 - 1"
    return f"above {rule.low:g}" if isinstance(rule, Above) else str(rule)


def _sentence(text: str) -> str:
    """A comment or docstring as a sentence. Words that are values of the key keep their case."""
    if not text:
        return ""
    is_value = text.split(" ")[0].endswith(":")
    begun = text if is_value else f"{text[0].upper()}{text[1:]}"
    return begun if begun.endswith((".", ")")) else f"{begun}."


def _value(value: Any) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != "" else "empty"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *(tuple(_cell(text) for text in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
