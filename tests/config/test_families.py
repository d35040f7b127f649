from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES, families_loading, family_of_channels, family_of_pipeline
from fluxexp.errors import ConfigError

Compose = Callable[..., RunConfig]


def test_names_are_the_keys_of_the_table() -> None:
    assert all(name == family.name for name, family in FAMILIES.items())


def test_tokens_are_image_tokens_and_text_tokens() -> None:
    family = FAMILIES["flux"]
    assert family.tokens(1024 * 1024) == 4096 + 512
    assert family.tokens(128 * 64, 16) == 32 + 16


def test_a_reference_doubles_the_image_tokens_but_not_the_shift() -> None:
    family = FAMILIES["flux_kontext"]
    assert family.tokens(1024 * 1024) == 2 * 4096 + 512
    assert family.image_tokens(1024 * 1024) == 4096


def test_a_family_is_found_by_its_pipeline_and_by_its_channels() -> None:
    assert family_of_pipeline("FluxFillPipeline").name == "flux_fill"
    assert family_of_channels(384, 64, 8).name == "flux_fill"
    assert family_of_channels(128, 64, 8).name == "flux_control"
    assert family_of_channels(64, 64, 8).name == "flux"
    assert families_loading("FluxFillPipeline") == ["flux_fill", "flux_fill_redux"]
    with pytest.raises(ValueError, match="no model family has a transformer with 100 input channels"):
        family_of_channels(100, 64, 8)
    with pytest.raises(ValueError, match="no model family has StableDiffusionPipeline"):
        family_of_pipeline("StableDiffusionPipeline")


def test_a_second_pass_counts_in_the_cost_of_a_step() -> None:
    assert FAMILIES["flux"].passes(1.0) == 1
    assert FAMILIES["flux"].passes(1.5) == 2
    assert replace(FAMILIES["flux_fill"], guidance="true_cfg").passes(1.0) == 2


def test_text_tokens_are_limited_by_family_and_tokenizer() -> None:
    family = FAMILIES["flux"]
    assert [family.text_tokens(None, limit) for limit in (256, 4096)] == [256, 512]
    assert family.text_tokens(77, 256) == 77


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("model.family=flux_fil", "did you mean 'flux_fill'? (allowed: fake, flux, flux_control"),
        ("model.layout=flux_def", "did you mean 'flux_dev'? (allowed: flux_control, flux_dev, flux_fill, flux_schnell"),
    ],
)
def test_an_unknown_family_or_layout_is_named_with_the_nearest_one(compose: Compose, override: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(override)
    assert override.replace("=", "='") in str(caught.value)
    assert hint in str(caught.value)
