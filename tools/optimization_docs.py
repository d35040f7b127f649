"""Writes the presets in conf/optimization/ and the table in docs/optimization.md from the optimization catalog.

    python -m tools.optimization_docs

A test fails if these files differ from what this tool writes. The preset `fast.yaml` is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fluxexp.config.optimization_catalog import AUTO, OPTIMIZATIONS, Optimization

ROOT = Path(__file__).parent.parent
_BEGIN, _END = "<!-- optimizations: begin -->\n", "<!-- optimizations: end -->\n"
_NONE = """\
# No optimization: the bits of the library's pipeline.
defaults:
  - step_cache: none # {step_cache} (docs/caches.md)
  - _self_

"""
_LOSSLESS = """\
# The same arithmetic by other kernels. In bfloat16 the relative distance of latents to optimization=none is below 0.01.
defaults:
  - none
  - _self_

"""
_AUTO = """\
# As lossless; on a CPU only what pays there. config.yaml and the fingerprint have what rank 0 chose for its device.
defaults:
  - none
  - _self_

"""
_WHERE = {"everywhere": "", "gpu": " # on if rank 0 has a GPU", "cpu": " # on if rank 0 has no GPU"}


def rendered() -> dict[Path, str]:
    """The text of each generated file, by path."""
    docs = ROOT / "docs" / "optimization.md"
    before, rest = docs.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    presets = {"none": _none(), "lossless": _lossless(), "auto": _auto()}
    return {ROOT / "conf" / "optimization" / f"{name}.yaml": text for name, text in presets.items()} | {
        docs: before + _BEGIN + _table() + _END + after
    }


def _none() -> str:
    lines = [
        f"{one.name}: {_yaml(one.off_value)} # {_summary(one)}" for one in _ALL if one.name != "step_cache"
    ]  # conf/optimization/step_cache/ has a file for each of its values
    return _NONE.format(step_cache=_summary(OPTIMIZATIONS["step_cache"])) + _joined(lines)


def _lossless() -> str:
    chosen = [one for one in _ALL if one.lossless is not None]
    return _LOSSLESS + _joined(
        f"{one.name}: {_yaml(one.lossless)}{_where(one) if one.lossless == AUTO else ''}" for one in chosen
    )


def _auto() -> str:
    return _AUTO + _joined(f"{one.name}: {AUTO}{_where(one)}" for one in _ALL if one.lossless is not None)


def _table() -> str:
    rows = (f"| `{one.name}` | {one.kind} | {one.doc}{'. ' + one.details if one.details else ''} |" for one in _ALL)
    return "| option | kind | what it does |\n| --- | --- | --- |\n" + _joined(rows)


_ALL: tuple[Optimization, ...] = tuple(OPTIMIZATIONS.values())


def _summary(one: Optimization) -> str:
    return f"{one.kind}: {one.doc.replace('`', '')}"


def _where(one: Optimization) -> str:
    assert one.auto is not None
    return _WHERE[one.auto]


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
