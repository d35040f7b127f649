"""Writes the tables of model families in docs/models.md from `FAMILIES` and from the configs that use them.

    python -m tools.family_docs

A test fails if the file differs from what this tool writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES, Family, Input

ROOT = Path(__file__).parent.parent
_DOCS = ROOT / "docs" / "models.md"
_BEGIN, _END = "<!-- families: begin -->\n", "<!-- families: end -->\n"
_PACKED_CHANNELS, _VAE_SCALE = 64, 8  # of all FLUX.1 models
_FAMILIES: tuple[Family, ...] = tuple(FAMILIES[name] for name in PIPELINE_FAMILIES)
_INPUTS: tuple[Input, ...] = get_args(Input)


def rendered() -> dict[Path, str]:
    """The text of each generated file, by path."""
    before, rest = _DOCS.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    return {_DOCS: before + _BEGIN + _choices() + "\n" + _properties() + _END + after}


def _choices() -> str:
    """What a user has besides prompts, and the families that need exactly this."""
    needs = dict.fromkeys(family.required for family in _FAMILIES)
    ordered = sorted(needs, key=lambda required: (len(required), [_INPUTS.index(name) for name in _ordered(required)]))
    rows = (
        (
            _nouns(required) or "nothing else",
            "<br>".join(_choice(family) for family in _FAMILIES if family.required == required),
        )
        for required in ordered
    )
    return _table(("you have prompts and", "family (model configs)"), rows)


def _choice(family: Family) -> str:
    configs = ", ".join(f"`{name}`" for name in _models(family))
    return f"`{family.name}` {family.purpose} ({configs})"


def _properties() -> str:
    header = ("family", "inputs", "guidance", "LoRA", "IP-Adapter", "tokens at 1024 x 1024", "optimizations", "try it")
    rows = (
        (
            f"`{family.name}`",
            _inputs(family),
            _guidance(family),
            _lora(family),
            "yes" if family.takes_ip_adapter else "no",
            _tokens(family),
            _optimizations(family),
            ", ".join(f"`+experiment={name}`" for name in _experiments(family)),
        )
        for family in _FAMILIES
    )
    return _table(header, rows)


def _inputs(family: Family) -> str:
    optional = _nouns(family.optional - {"negative_prompt"})
    return ", ".join(("prompt", *filter(None, [_nouns(family.required), optional and f"optional: {optional}"])))


def _guidance(family: Family) -> str:
    own = {"embedded": "`guidance`", "true_cfg": "always a second pass", "none": "none"}[family.guidance]
    return f"{own}, negative prompts" if family.takes_negative_prompt else own


def _lora(family: Family) -> str:
    if not family.takes_loras:
        return "no"
    added = family.in_channels(_PACKED_CHANNELS, _VAE_SCALE) - _PACKED_CHANNELS
    return f"yes; those of FLUX.1-dev are padded by {added} inputs" if added else "yes"


def _tokens(family: Family) -> str:
    return f"{family.tokens(1024**2):,}"


def _optimizations(family: Family) -> str:
    without = ", ".join(f"`{name}`" for name in sorted(family.unsupported_optimizations))
    return f"all but {without}" if without else "all"


def _models(family: Family) -> list[str]:
    """Names of the configs of the family: `model=NAME`."""
    return [path.stem for path in _configs("model") if _load(path)["family"] == family.name]


def _experiments(family: Family) -> Iterator[str]:
    """Names of the experiments that begin with a model of the family."""
    models = _models(family)
    for path in _configs("experiment"):
        chosen = {name for entry in _load(path).get("defaults", ()) for name in [entry.get("override /model")]}
        if (chosen - {None} or {_default_model()}) & set(models):
            yield path.stem


def _default_model() -> str:
    (name,) = (entry["model"] for entry in _load(ROOT / "conf" / "config.yaml")["defaults"] if "model" in entry)
    return str(name)


def _configs(group: str) -> list[Path]:
    return sorted((ROOT / "conf" / group).glob("*.yaml"))


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _ordered(inputs: Iterable[Input]) -> list[Input]:
    return sorted(inputs, key=_INPUTS.index)


def _nouns(inputs: Iterable[Input]) -> str:
    return ", ".join(name.replace("_", " ") for name in _ordered(inputs))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (header, tuple("---" for _ in header), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
