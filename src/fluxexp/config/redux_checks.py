"""Checks that the group redux fits the model family, and the files of FLUX.1-Redux. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fluxexp.config.checkpoint_files import component_config, model_files
from fluxexp.config.component_checks import WeightComponent, check_weights
from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES
from fluxexp.config.hub_directories import redux_place
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig, RunConfig
from fluxexp.config.tensor_layouts import NOT_VISION, VISION_PREFIX, redux_layout, siglip_layout
from fluxexp.config.weight_headers import ComponentError, read_json
from fluxexp.errors import ConfigError, Problem

REDUX_COMPONENTS: Mapping[str, WeightComponent] = {
    "image_encoder": WeightComponent(
        title="SigLIP",
        class_name="SiglipVisionModel",
        stem="model",
        layout=siglip_layout,
        prefix=VISION_PREFIX,
        ignored=NOT_VISION,
    ),
    "image_embedder": WeightComponent(
        title="Redux", class_name="ReduxImageEncoder", stem="diffusion_pytorch_model", layout=redux_layout
    ),
}
"""The components of FLUX.1-Redux with weights, by directory."""
PROCESSOR_FILE = "feature_extractor/preprocessor_config.json"
_GET = "use redux.path=black-forest-labs/FLUX.1-Redux-dev, or a directory with these files"
_PIPELINE = "FluxPriorReduxPipeline"


def redux_fits(config: RunConfig) -> Iterator[Problem]:
    """Check the group redux."""
    family, redux, model = FAMILIES[config.model.family], config.redux, config.model
    if not family.has_redux:
        able = ", ".join(name for name in PIPELINE_FAMILIES if FAMILIES[name].has_redux)
        off = {"path": None, "reads_prompt": True, "scale": 1.0, "pooled_scale": 1.0}
        for name, value in off.items():
            if getattr(redux, name) != value:
                what = f"has no effect, because model.family={family.name} has no Redux"
                hint = f"use {'null' if value is None else str(value).lower()}, or a model of the family {able}"
                yield Problem(f"redux.{name}", what, getattr(redux, name), hint)
        return
    assert isinstance(model, FluxModelConfig)
    if not redux.reads_prompt and config.sampling.prompt_2 is not None:
        what = "has no effect with redux.reads_prompt=false"
        yield Problem("sampling.prompt_2", what, config.sampling.prompt_2, "set only one of the two")
    if not redux.reads_prompt and redux.pooled_scale != 1:
        what = "has no effect with redux.reads_prompt=false, which makes the pooled embedding zero"
        yield Problem("redux.pooled_scale", what, redux.pooled_scale, "use 1.0")
    if model.weights == "random":
        if redux.path is not None:
            yield Problem("redux.path", "has no effect on random weights", redux.path, "use null")
    elif (place := redux_place(redux)) is None:
        yield Problem("redux.path", f"must be set for model.family={family.name}", "null", _GET)
    else:
        yield from place.problems_of_place()
        if directory := place.find():
            yield from redux_problems(config, directory)


def redux_problems(config: RunConfig, directory: Path) -> Iterator[Problem]:
    """Check the files of FLUX.1-Redux in `directory`, and whether they fit the transformer."""
    assert isinstance(config.model, FluxModelConfig)
    try:
        check_redux(directory, _text_width(config.model))
    except ComponentError as error:
        yield Problem("redux.path", str(error), config.redux.path, error.hint)


def check_redux(directory: Path, text_width: int | None) -> None:
    """Check the files of FLUX.1-Redux without loading them.

    Args:
        directory: in the layout of diffusers.
        text_width: values per text token of the transformer; None if it is not known.

    Raises:
        ComponentError: they are missing, damaged, or do not fit each other or the transformer.
    """
    found = read_json(directory / "model_index.json").get("_class_name")
    if found != _PIPELINE:
        raise ComponentError(f"contains a {found}, but Redux is a {_PIPELINE}", _GET)
    for name, component in REDUX_COMPONENTS.items():
        check_weights(directory / name, component)
    read_json(directory / PROCESSOR_FILE)
    seen = read_json(directory / "image_encoder" / "config.json")["hidden_size"]
    embedder = read_json(directory / "image_embedder" / "config.json")
    taken, made = embedder.get("redux_dim", 1152), embedder.get("txt_in_features", 4096)
    if taken != seen:
        reason = f"has an image_encoder that makes {seen} values per token, but its image_embedder takes {taken}"
        raise ComponentError(reason, "use components of one model")
    if text_width not in (None, made):
        reason = f"makes {made} values per token, but the transformer takes {text_width}"
        raise ComponentError(reason, "use a Redux that was trained for this model")


def _text_width(model: FluxModelConfig) -> int | None:
    """Values per text token of the transformer; None if its config is not on this machine."""
    directory = model_directory(model.source)
    if directory is None:
        return None
    try:
        width = component_config(directory, "transformer", model_files(model)).get("joint_attention_dim")
    except (ComponentError, ConfigError):  # another check reports it
        return None
    return width if isinstance(width, int) else None
