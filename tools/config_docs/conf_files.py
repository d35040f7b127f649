"""Reads conf/: the files of each group, their values with those that they extend, and their comments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fluxexp.cli.help_text import _comments, _first_comment

CONF = Path(__file__).parents[2] / "conf"


def files_of(group: str) -> list[str]:
    """Names of the files of a group, the chosen one first."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return sorted(names, key=lambda name: name != chosen(group))


def chosen(group: str) -> str | None:
    """The file of a group that conf/config.yaml chooses; None if it chooses none."""
    entries = _load(CONF / "config.yaml")["defaults"]
    return next((entry[group] for entry in entries if isinstance(entry, dict) and group in entry), None)


def values_of(group: str, name: str) -> dict[str, Any]:
    """The values of a file and, below them, of the files of the group that it extends."""
    content = _load(CONF / group / f"{name}.yaml")
    values: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            values = _merged(values, values_of(group, entry))
        elif isinstance(entry, Mapping):  # a group inside of this one, as optimization/step_cache
            values |= {key: None for key, file in entry.items() if file == "none"}
    return _merged(values, content)


def purpose_of(group: str, name: str) -> str:
    """The first sentence of the comment at the top of a file."""
    return _first_comment([CONF / group], f"{name}.yaml") or ""


def comments_of(group: str) -> dict[str, str]:
    """The comments of keys in all files of a group. The chosen file comes first."""
    found: dict[str, str] = {}
    for name in reversed(files_of(group)):
        found |= dict(_comments(CONF / group / f"{name}.yaml"))
    return found


def own_keys() -> Iterator[tuple[str, Any, str]]:
    """Name, value and comment of the keys in conf/config.yaml that belong to no group."""
    comments = dict(_comments(CONF / "config.yaml"))
    for name, value in _load(CONF / "config.yaml").items():
        if name not in ("defaults", "hydra"):
            yield name, value, comments.get(name, "")


def group_comment(group: str) -> str:
    """What conf/config.yaml says of a group."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    match = re.search(rf"^  - {group}: \S+ # (.*)$", text, flags=re.MULTILINE)
    return match[1] if match else ""


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
