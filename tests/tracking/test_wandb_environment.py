"""Which setting counts: the config, then W&B's variable, then fluxexp's default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fluxexp.config.schema import TrackingConfig
from fluxexp.tracking import run_name
from fluxexp.tracking.wandb_environment import WandbSettings

VARIABLES = {"WANDB_PROJECT": "p", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "x, y,", "WANDB_DIR": "/logs"}


def test_the_config_counts_more_than_a_variable(tracking: TrackingConfig) -> None:
    settings = WandbSettings.of(replace(tracking, group="own"), Path("/run"), "proposed", VARIABLES)
    assert (settings.project, settings.group, settings.tags) == ("fluxexp-tests", "own", ["a", "b"])
    assert settings.directory == Path("/logs"), "the config has no key for it"


def test_a_variable_counts_more_than_a_default(tracking: TrackingConfig) -> None:
    silent = replace(tracking, project=None, tags=[])
    settings = WandbSettings.of(silent, Path("/run"), "proposed", VARIABLES)
    assert (settings.project, settings.group, settings.tags) == ("p", "g", ["x", "y"])
    for empty in ({}, dict.fromkeys(VARIABLES, "")):
        settings = WandbSettings.of(silent, Path("/run"), "proposed", empty)
        assert (settings.project, settings.group, settings.tags) == ("fluxexp", "proposed", [])
        assert settings.directory == Path("/run")


def test_the_name_of_a_run() -> None:
    assert run_name("fill-1", {"WANDB_NAME": "mine"}) == "mine"
    assert run_name("fill-1", {"WANDB_NAME": ""}) == run_name("fill-1", {}) == "fill-1"
