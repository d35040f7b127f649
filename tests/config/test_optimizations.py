"""The config, the presets and the docs agree with the declarations of optimizations."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

import pytest

from fluxexp.config import RunConfig
from fluxexp.config.build import field_types
from fluxexp.config.optimization_catalog import AUTO, NONE, OPTIMIZATIONS, Optimization
from fluxexp.config.optimization_kinds import chosen
from fluxexp.config.schema import OptimizationConfig, Switch
from tests.config.test_checks import Compose
from tools.optimization_docs import rendered


@pytest.mark.parametrize(("path", "text"), rendered().items(), ids=lambda value: getattr(value, "name", ""))
def test_generated_files_are_up_to_date(path: Path, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "run `python -m tools.optimization_docs`"


def test_the_schema_has_the_declared_names_in_order() -> None:
    assert [spec.name for spec in fields(OptimizationConfig)] == list(OPTIMIZATIONS)


@pytest.mark.parametrize("declared", OPTIMIZATIONS.values(), ids=lambda declared: declared.name)
def test_a_declaration_fits_the_type_of_its_value(declared: Optimization) -> None:
    hint = field_types(OptimizationConfig)[declared.name]
    accepts_auto = hint == Switch or str in get_args(hint) or AUTO in str(hint)
    assert (declared.auto is not None) == accepts_auto
    assert not declared.off_value
    assert {*(need.name for need in declared.needs), *declared.conflicts} <= OPTIMIZATIONS.keys()


def test_needed_optimizations_are_applied_first() -> None:
    order = list(OPTIMIZATIONS)
    for declared in OPTIMIZATIONS.values():
        assert all(order.index(need.name) < order.index(declared.name) for need in declared.needs)


def test_nothing_is_on_in_none() -> None:
    assert not any(asdict(NONE).values())


def test_presets_use_only_their_kinds(compose: Compose) -> None:
    def approximate(config: RunConfig) -> set[str]:
        return set(chosen(config.optimization, "approximate"))

    lossless, fast = compose("optimization=lossless"), compose("optimization=fast")
    assert not approximate(lossless)
    assert not approximate(compose("optimization=auto"))
    assert approximate(fast) == {"fp8_linears", "step_cache"}
    assert chosen(fast.optimization, "exact", "lossless") == chosen(lossless.optimization, "exact", "lossless")


@pytest.mark.parametrize(("value", "kind"), [("native", "lossless"), ("fastest", "lossless"), ("sage", "approximate")])
def test_quantized_attention_is_approximate(value: str, kind: str) -> None:
    assert OPTIMIZATIONS["attention_backend"].kind_of(value) == kind


def test_words_name_the_value() -> None:
    assert OPTIMIZATIONS["text_encoder_weights"].words("fp8") == "text_encoder_weights=fp8"
    assert OPTIMIZATIONS["onednn_linears"].words(True) == "onednn_linears"


@pytest.mark.parametrize(
    ("name", "value", "applied", "later", "reason"),
    [
        ("step_cache", object(), ["hoist_constants"], [], None),
        ("step_cache", object(), [], [], "it needs hoist_constants"),
        ("fp8_linears", True, ["hoist_constants"], [], "it needs fused_kernels"),
        ("offload", "group", [], [], "it needs hoist_constants"),
        ("offload", "model", [], [], None),
        ("compile_blocks", True, [], [], None),
        ("compile_blocks", True, ["fused_kernels"], [], "fused_kernels leave nothing to compile"),
        ("compile_vae", True, [], ["vae_tiling"], "vae_tiling decodes tiles of many shapes"),
    ],
)
def test_reasons_to_skip(name: str, value: object, applied: list[str], later: list[str], reason: str | None) -> None:
    assert OPTIMIZATIONS[name].reason_to_skip(value, applied, later) == reason
