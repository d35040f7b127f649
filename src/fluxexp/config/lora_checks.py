"""Checks that LoRA files exist, have a known format, and fit the model. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxexp.config.checkpoint_files import component_config, model_files
from fluxexp.config.families import FAMILIES
from fluxexp.config.hub_models import cached_snapshot
from fluxexp.config.lora_files import LoraHeader, lora_header
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.model_paths import EMBEDDED, model_directory
from fluxexp.config.schema import DatasetConfig, FluxModelConfig, PromptsDatasetConfig, RunConfig, TableDatasetConfig
from fluxexp.config.tensor_layouts import clip_layout, current_name, flux_layout
from fluxexp.config.weight_headers import ComponentError, Shapes
from fluxexp.errors import ConfigError, Problem

_NAMED = 3


def loras_fit(config: RunConfig) -> Iterator[Problem]:
    """Check the group lora."""
    lora = config.lora
    if lora.mixing:
        yield from _mixing_can_work(config)
    if not lora.paths:
        if lora.scale != 1.0 and not _can_have_loras(config.dataset):
            yield Problem("lora.scale", "has no effect without lora.path", lora.scale, "set lora.path, or use 1.0")
        if isinstance(config.model, FluxModelConfig) and not _can_have_loras(config.dataset):
            yield from _has_control_lora(config.model, ())
        return
    if not FAMILIES[config.model.family].takes_loras or not isinstance(config.model, FluxModelConfig):
        what = f"has no effect, because model.family={config.model.family} has no weights"
        yield Problem("lora.path", what, lora.path, "use null, or another model")
        return
    if len(lora.scales) != len(lora.paths):
        what = f"has {len(lora.scales)} values, but lora.path has {len(lora.paths)} file(s)"
        yield Problem("lora.scale", what, lora.scale, "give one value for each file, or one number for all")
        return
    shapes = model_shapes(config.model)
    wrong = False
    for path in lora.paths:
        try:
            require_fit(lora_header(path), shapes)
            if path.startswith(EMBEDDED) and not shapes:
                raise ComponentError(f"is for an embedded model, not for {config.model.name}", "use lora=none")
        except ComponentError as error:
            wrong = True
            yield Problem("lora.path", str(error), path, error.hint)
    if not wrong:
        yield from _has_control_lora(config.model, lora.paths)


def _has_control_lora(model: FluxModelConfig, paths: Sequence[str]) -> Iterator[Problem]:
    """Check that a widened model (`Family.widened`) has a Control LoRA: it would ignore control images otherwise."""
    channels = widened_channels(model)
    if channels is not None and not any(is_control_lora(lora_header(path), channels) for path in paths):
        what = f"has no Control LoRA, without which {model.name}, a text-to-image model, ignores control images"
        value = list(paths) or None
        yield Problem("lora.path", what, value, "add one, for example lora=tiny_control, or use a Control checkpoint")


def _mixing_can_work(config: RunConfig) -> Iterator[Problem]:
    optimization = config.optimization
    if not config.lora.paths and not _can_have_loras(config.dataset):
        yield Problem("lora.mixing", "has no effect without LoRAs", True, "set lora.path, or use false")
    for name in ("fp8_linears", "step_cache"):
        if value := getattr(optimization, name):
            what = "does not work with lora.mixing=true: each image of a batch has its own change of each layer"
            shown = value if isinstance(value, bool) else value.name
            hint = "set it to false or null, or use lora.mixing=false, which merges LoRAs"
            yield Problem(f"optimization.{name}", what, shown, hint)


def _can_have_loras(dataset: DatasetConfig) -> bool:
    """Whether samples may have LoRAs of their own: the rows of a table."""
    if isinstance(dataset, TableDatasetConfig | PromptsDatasetConfig):
        return not dataset.path.lower().endswith(".txt")
    return False


def require_fit(header: LoraHeader, shapes: Mapping[str, Shapes | None]) -> None:
    """Check that a LoRA fits a model.

    Args:
        header: of the LoRA.
        shapes: of the tensors of `transformer` and `text_encoder`; None where they are not known.

    Raises:
        ComponentError: a layer is missing, or has another shape.
    """
    wrong = [text for name in header.layers if (text := _misfit(name, header, shapes))]
    transformer = shapes.get("transformer")
    if transformer is not None:
        wrong += [name for name, shape in header.norms.items() if transformer.get(name) != shape]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        reason = f"does not fit the model: {'; '.join(wrong[:_NAMED])}{more}"
        raise ComponentError(
            reason, "use a LoRA that was trained for this model (a Control LoRA needs model=flux_control), or lora=none"
        )


def _misfit(name: str, header: LoraHeader, shapes: Mapping[str, Shapes | None]) -> str | None:
    component, _, layer = name.partition(".")
    known, lora = shapes.get(component), header.layers[name]
    if known is None:
        return None
    own = known.get(f"{layer}.weight")
    if own is None or len(own) != 2:
        return f"the model has no layer {name}"
    if lora.has_bias and f"{layer}.bias" not in known:
        return f"{name} has no bias"
    # Fewer inputs are allowed: a LoRA for FLUX.1-dev on Fill or Control is padded with zeros, as diffusers does it.
    if lora.outputs != own[0] or lora.inputs > own[1]:
        return f"{name} has {own[1]} inputs and {own[0]} outputs, the LoRA {lora.inputs} and {lora.outputs}"
    # Another family's further inputs, such as the control image of a Control LoRA on Fill, would change wrong weights.
    latents = known.get("proj_out.weight", own)[0]
    if layer == "x_embedder" and lora.inputs not in (own[1], latents):
        return f"{name} has {own[1]} inputs, {latents} of them latents; the LoRA has {lora.inputs}, for another family"
    return None


def model_shapes(model: FluxModelConfig) -> Mapping[str, Shapes | None]:
    """Shapes of the tensors of transformer and CLIP, from their configs. None: they are not known before loading."""
    if model.weights == "random":
        if model.layout is None:  # another check reports it
            return {}
        layout = LAYOUTS[model.layout]
        configs = {"transformer": layout.transformer, "text_encoder": layout.clip}
        return {component: _current(layout_of(configs[component])) for component, layout_of in _LAYOUTS.items()}
    directory = _directory(model)
    if directory is None:
        return {}
    shapes: dict[str, Shapes | None] = {}
    for component, layout_of in _LAYOUTS.items():
        try:
            values = component_config(directory, component, model_files(model))
            if component == "transformer":
                values = widened_config(model.family, values)
            shapes[component] = _current(layout_of(values))
        except (ComponentError, ConfigError, KeyError, TypeError):  # other checks report it
            shapes[component] = None
    return shapes


_LAYOUTS: Mapping[str, Callable[[Mapping[str, Any]], Shapes | None]] = {
    "transformer": flux_layout,
    "text_encoder": clip_layout,
}
"""The components that LoRAs change, with the function that gives the shapes of their tensors."""


def is_control_lora(header: LoraHeader, channels: int) -> bool:
    """Whether a LoRA changes all of the `channels` of the input layer, and so those of the control image."""
    layer = header.layers.get("transformer.x_embedder")
    return layer is not None and layer.inputs == channels


def widened_config(family: str, transformer: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a transformer after its input layer is widened for `family`; see `Family.widened`."""
    inputs = transformer["in_channels"]
    outputs = transformer.get("out_channels") or inputs
    channels = FAMILIES[family].widened_channels(inputs, outputs)
    return dict(transformer) if channels is None else {**transformer, "in_channels": channels, "out_channels": outputs}


def widened_channels(model: FluxModelConfig) -> int | None:
    """Number of input channels of a model that is widened; None if it is not, or if that is not known yet."""
    directory = _directory(model)
    if directory is None:
        return None
    try:
        transformer = component_config(directory, "transformer", model_files(model))
        widened: int = widened_config(model.family, transformer)["in_channels"]
        return widened if widened != transformer["in_channels"] else None
    except (ComponentError, ConfigError, KeyError, TypeError):  # other checks report it
        return None


def _directory(model: FluxModelConfig) -> Path | None:
    """The directory of the model, if it has weights and is on this machine."""
    if model.weights == "random":
        return None
    if directory := model_directory(model.source):
        return directory
    snapshot = cached_snapshot(model.source, model.revision)
    return snapshot.directory if snapshot else None


def _current(shapes: Shapes | None) -> Shapes | None:
    return None if shapes is None else {current_name(name): shape for name, shape in shapes.items()}


def lora_notes(config: RunConfig) -> Iterator[str]:
    """What of the LoRA files has no effect, because diffusers does not use it."""
    for path in config.lora.paths:
        if ignored := lora_header(path).ignored:
            names = ", ".join(ignored[:_NAMED])
            yield f"lora.path={path}: {len(ignored)} tensors are not used, as in diffusers ({names})"
