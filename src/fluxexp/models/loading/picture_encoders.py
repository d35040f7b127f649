"""Loads the encoders of pictures that belong to no pipeline of FLUX.1: those of Redux and of an IP-Adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fluxexp.config.component_checks import WeightComponent, raise_for_tensors
from fluxexp.config.hub_directories import HubDirectory, image_encoder_place, redux_place
from fluxexp.config.ip_adapter_checks import (
    CLIP_VISION,
    check_image_encoder,
    check_ip_adapter,
    ip_adapter_layout,
    ip_adapter_tensor,
    num_picture_tokens,
)
from fluxexp.config.model_layouts import ModelLayout
from fluxexp.config.picture_schema import IpAdapterConfig, ReduxConfig
from fluxexp.config.redux_checks import PROCESSOR_FILE, REDUX_COMPONENTS, check_redux
from fluxexp.config.weight_headers import ComponentError
from fluxexp.errors import ConfigError, ModelError, Problem
from fluxexp.models.loading.random_weights import draw_module, on_meta

_SEED = 1
"""Of random weights. Another one than that of the pipeline."""


def load_redux(redux: ReduxConfig, text_width: int, dtype: torch.dtype) -> Any:
    """Load a `FluxPriorReduxPipeline` without text encoders, on the host.

    Raises:
        ModelError: files are missing or damaged, or do not fit the transformer.
    """
    place = redux_place(redux)
    assert place is not None
    try:
        directory = _directory(place, lambda each: check_redux(each, text_width))
        loaded = {name: load_module(directory / name, component, dtype) for name, component in REDUX_COMPONENTS.items()}
        processor = SiglipImageProcessorPil.from_pretrained(str((directory / PROCESSOR_FILE).parent))
    except ComponentError as error:
        raise ModelError(f"redux.path={place.path!r} cannot be loaded: {error}: {error.hint}") from error
    except (ConfigError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"redux.path={place.path!r} cannot be loaded: {error}") from error
    return diffusers.FluxPriorReduxPipeline(feature_extractor=processor, **loaded)


def _directory(place: HubDirectory, check: Callable[[Path], object]) -> Path:
    """The directory on this machine. Rank 0 has checked its files, but this rank may be on another machine.

    Args:
        place: names the directory.
        check: raises a ComponentError if files are missing or damaged.

    Raises:
        ConfigError: they are, or cannot be downloaded.
    """

    def problems(directory: Path) -> Iterator[Problem]:
        try:
            check(directory)
        except ComponentError as error:
            yield Problem(place.key, str(error), place.path, error.hint)

    return place.checked(problems)


def load_module(directory: Path, component: WeightComponent, dtype: torch.dtype) -> torch.nn.Module:
    """Load a component on the host.

    Raises:
        ComponentError: its files lack tensors that the module has.
        OSError, ValueError, RuntimeError: the library cannot load it.
    """
    library = transformers if component.stem == "model" else diffusers
    module: torch.nn.Module
    module, info = getattr(library, component.class_name).from_pretrained(
        str(directory), dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    wrong = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]]
    raise_for_tensors(directory.name, sorted(info["missing_keys"]), (), sorted(wrong), title=component.title)
    return module.eval()


def redux_without_weights(layout: ModelLayout, dtype: torch.dtype) -> Any:
    """A `FluxPriorReduxPipeline` of `layout` without text encoders, on PyTorch's meta device."""
    side, text = layout.siglip["image_size"], layout.transformer["joint_attention_dim"]
    width = layout.siglip["hidden_size"]
    return diffusers.FluxPriorReduxPipeline(
        image_encoder=on_meta(lambda: SiglipVisionModel(SiglipVisionConfig(**layout.siglip)), dtype),
        feature_extractor=SiglipImageProcessorPil(size={"height": side, "width": side}),
        image_embedder=on_meta(
            lambda: diffusers.pipelines.flux.modeling_flux.ReduxImageEncoder(redux_dim=width, txt_in_features=text),
            dtype,
        ),
    )


def draw_redux(prior: Any, device: torch.device, home: torch.device) -> None:
    """Fill the modules of `redux_without_weights` with random weights, drawn on `device` and kept on `home`."""
    generator = torch.Generator(device).manual_seed(_SEED)
    for module in (prior.image_encoder, prior.image_embedder):
        draw_module(module, generator, home)


def add_ip_adapter(pipeline: Any, adapter: IpAdapterConfig) -> None:
    """Load an IP-Adapter and its image encoder into a pipeline on the host.

    Raises:
        ModelError: files are missing or damaged, or do not fit the transformer.
    """
    transformer, place = pipeline.transformer, image_encoder_place(adapter)
    assert place is not None
    file = Path(str(adapter.path)).expanduser()
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    what = f"ip_adapter.path={adapter.path!r} with ip_adapter.image_encoder={place.path!r} cannot be loaded"
    try:
        directory = _directory(place, check_image_encoder)
        check_ip_adapter(file, check_image_encoder(directory), shapes)
        encoder = load_module(directory, CLIP_VISION, transformer.dtype)
        stored = load_file(file)
    except ComponentError as error:
        raise ModelError(f"{what}: {error}: {error.hint}") from error
    except (ConfigError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{what}: {error}") from error
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in stored.items():
        belongs = ip_adapter_tensor(name)
        assert belongs is not None
        state[belongs.part][belongs.name] = tensor.to(transformer.dtype)
    _install(pipeline, state, encoder)


def add_random_ip_adapter(pipeline: Any, layout: ModelLayout) -> None:
    """Put an IP-Adapter of `layout` without weights into a pipeline without weights: all on PyTorch's meta device."""
    transformer, config = pipeline.transformer, pipeline.transformer.config
    embed_width = layout.clip_vision["projection_dim"]
    shapes = ip_adapter_layout(
        config.num_layers,
        config.num_attention_heads * config.attention_head_dim,
        config.joint_attention_dim,
        num_picture_tokens(16 * config.joint_attention_dim),
        embed_width,
    )
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        state[part][rest] = torch.empty(shape, dtype=transformer.dtype, device="meta")
    vision = CLIPVisionConfig(**layout.clip_vision)
    _install(pipeline, state, on_meta(lambda: CLIPVisionModelWithProjection(vision), transformer.dtype))


def _install(pipeline: Any, state: dict[str, dict[str, torch.Tensor]], encoder: torch.nn.Module) -> None:
    pipeline.transformer._load_ip_adapter_weights([state])
    side = encoder.config.image_size  # type: ignore[union-attr]
    processor = CLIPImageProcessorPil(size=side, crop_size=side)  # as diffusers makes it
    pipeline.register_modules(image_encoder=encoder, feature_extractor=processor)
