"""Random values, texts and files, and random damage to valid ones."""

from __future__ import annotations

import json
import random
from typing import Any

_WORDS = (
    "",
    "a",
    "0",
    "-1",
    "1e999",
    "null",
    "true",
    "../../x",
    "/etc/passwd",
    "é",
    "\ud800",
    "\x00",
    "<script>",
    "${x}",
    "~",
)
_NUMBERS = (0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, -0.0, float("nan"), float("inf"))


def value(source: random.Random, depth: int = 0) -> Any:
    """A random JSON value."""
    kind = source.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return None
    if kind == 1:
        return source.random() < 0.5
    if kind == 2:
        return source.choice(_NUMBERS)
    if kind == 3:
        return source.choice(_WORDS)
    if kind == 4:
        return text(source)
    if kind in (5, 6):
        return {source.choice(_WORDS): value(source, depth + 1) for _ in range(source.randrange(4))}
    return [value(source, depth + 1) for _ in range(source.randrange(4))]


def text(source: random.Random, longest: int = 12) -> str:
    """Random characters, mostly those with a meaning in YAML, JSON, Hydra and paths."""
    alphabet = "ab01 .,:;=+-*~/\\'\"()[]{}$@#%&|<>!?\t\n_é\u2028"
    return "".join(source.choice(alphabet) for _ in range(source.randrange(longest)))


def changed(source: random.Random, values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a JSON object in which a few values, at any depth, are replaced, removed or added."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    for _ in range(source.randrange(1, 4)):
        node: Any = copy
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = source.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and source.random() < 0.6:
                node = node[key]
                continue
            if source.random() < 0.25:
                del node[key]
            else:
                node[key] = value(source)
            break
    if source.random() < 0.1:
        copy[source.choice(_WORDS)] = value(source)
    return copy


def bytes_of(source: random.Random, content: bytes) -> bytes:
    """`content` with a few bytes changed, removed, repeated or added."""
    data = bytearray(content)
    for _ in range(source.randrange(1, 8)):
        place = source.randrange(len(data) + 1)
        how = source.randrange(4)
        if how == 0 and place < len(data):
            data[place] = source.randrange(256)
        elif how == 1:
            del data[place : place + source.randrange(1, 40)]
        elif how == 2:
            data[place:place] = data[place : place + source.randrange(1, 40)]
        else:
            data[place:place] = source.randbytes(source.randrange(1, 8))
    return bytes(data[: source.randrange(len(data) + 1)] if source.random() < 0.1 else data)


def lines(source: random.Random, valid: list[dict[str, Any]]) -> bytes:
    """A file of JSON lines: some valid, some with changed values, some of other content."""
    made = []
    for _ in range(source.randrange(1, 6)):
        kind = source.randrange(6)
        line = json.dumps(source.choice(valid)).encode()
        if kind in (1, 2, 3):
            line = json.dumps(changed(source, source.choice(valid))).encode()
        elif kind == 4:
            line = json.dumps(value(source)).encode()
        elif kind == 5:
            line = bytes_of(source, line)
        made.append(line)
    whole = b"\n".join(made) + b"\n"
    return bytes_of(source, whole) if source.random() < 0.2 else whole
