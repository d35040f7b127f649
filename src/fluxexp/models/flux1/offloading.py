"""Measures the weights of a FLUX.1 pipeline, and puts them where an `OffloadPlan` says, with `weight_streaming.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fluxexp.config.families import Family, family_of_pipeline
from fluxexp.config.schema import OptimizationConfig
from fluxexp.models.flux1.ip_adapter import ip_layers
from fluxexp.models.flux1.modulation import TABLE_ROWS, modulation_layers
from fluxexp.models.kernels.fp8_linear import is_quantizable
from fluxexp.models.offload.offload_plan import MemoryBudget, OffloadPlan, WeightSizes, WorkingMemory, working_memory
from fluxexp.models.offload.weight_streaming import BlockStream, Slots, Weights, WeightStreaming

if TYPE_CHECKING:
    from fluxexp.models.flux1.flux1_model import Flux1Model

TILE = 512
"""Side in pixels of a tile of the VAE with `vae_tiling`."""


def memory_budget(
    pipeline: Any,
    optimization: OptimizationConfig,
    free_bytes: int,
    family: Family | None = None,
    encoders: Sequence[torch.nn.Module] = (),
) -> MemoryBudget:
    """The memory budget of `pipeline`, which may be on any device and is not optimized yet.

    Args:
        pipeline: of diffusers.
        optimization: what will be applied.
        free_bytes: free memory of the device.
        family: of the model; None for the first one with this class of pipeline.
        encoders: further modules that are used with the text encoders (Redux).
    """
    assert optimization.offload is not None
    parts, can_stream = parts_of(pipeline, optimization, encoders), bool(optimization.hoist_constants)
    policy = optimization.offload
    return MemoryBudget(policy, free_bytes, parts, lambda n: work_for(pipeline, optimization, n, family), can_stream)


def parts_of(pipeline: Any, optimization: OptimizationConfig, encoders: Sequence[torch.nn.Module] = ()) -> WeightSizes:
    """Sizes of the weights of `pipeline` as they will be once its optimizations are applied. See `memory_budget`."""
    transformer, t5 = pipeline.transformer, pipeline.text_encoder_2
    blocks = _blocks(transformer)
    modulations = [weight_bytes([layer]) for block in blocks for layer in modulation_layers(block)]
    adapter = [layer for block in blocks for layer in ip_layers(block)]
    of_blocks = _block_bytes(transformer, optimization)
    in_eight_bits = _always if optimization.text_encoder_weights else _never
    text_blocks = [weight_bytes([block], in_eight_bits) for block in t5.encoder.block]
    whole_text = weight_bytes([pipeline.text_encoder, *encoders]) + weight_bytes([t5], in_eight_bits)
    rest = weight_bytes([transformer], excluded=blocks) + weight_bytes(adapter)
    return WeightSizes(
        text=whole_text - sum(text_blocks),
        text_blocks=text_blocks,
        transformer=rest,
        blocks=of_blocks,
        modulations=modulations,
        vae=weight_bytes([pipeline.vae]) + sum(_network_bytes(net, optimization) for net in _controlnets(pipeline)),
    )


def _block_bytes(network: Any, optimization: OptimizationConfig) -> list[int]:
    """Size of each block without the layers that are called outside of it."""
    in_fp8 = is_quantizable if optimization.fp8_linears else _never
    return [weight_bytes([block], in_fp8, excluded=_not_streamed(block)) for block in _blocks(network)]


def _network_bytes(network: Any, optimization: OptimizationConfig) -> int:
    """Size of a whole ControlNet."""
    blocks = _blocks(network)
    modulations = [layer for block in blocks for layer in modulation_layers(block)]
    others = weight_bytes([network], excluded=blocks) + weight_bytes(modulations)
    return others + sum(_block_bytes(network, optimization))


def work_for(
    pipeline: Any, optimization: OptimizationConfig, pixels: int, family: Family | None = None
) -> WorkingMemory:
    """The memory that an image with this many pixels takes in addition to weights."""
    config = pipeline.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    item_bytes = pipeline.transformer.dtype.itemsize
    family = family or family_of_pipeline(type(pipeline).__name__)
    tokens = family.tokens(pixels, family.text_tokens(None, pipeline.tokenizer_2.model_max_length))
    channels = pipeline.vae.config.block_out_channels
    networks = [pipeline.transformer, *_controlnets(pipeline)]
    rows = sum(layer.out_features for each in networks for block in _blocks(each) for layer in modulation_layers(block))
    # The residuals of a ControlNet: before they are stacked, stacked, and as the input of a CUDA graph.
    residuals = sum(len(_blocks(net)) for net in _controlnets(pipeline)) * 3 * family.image_tokens(pixels) * width
    at_a_time = min(pixels, TILE**2) if optimization.vae_tiling else pixels
    second_finest = channels[min(1, len(channels) - 1)]
    return working_memory(
        at_a_time, tokens, width, second_finest, item_bytes, (TABLE_ROWS * rows + residuals) * item_bytes
    )


def offload(model: Flux1Model, plan: OffloadPlan) -> tuple[BlockStream, BlockStream] | None:
    """Put the weights of `model` where `plan` says. Some may be there already.

    Returns:
        streams of the transformer's blocks and of its modulation layers (`DenoiserOptions.streams`); None if the plan
        does not stream block by block.

    Raises:
        RuntimeError: the host cannot pin the memory for the weights that leave the device.
    """
    pipeline, device = model.pipeline, model.device
    for component in (pipeline.vae, *_controlnets(pipeline)):
        component.to(device)
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2, *model.pictures.modules]
    if plan.policy == "resident":
        for component in (*encoders, pipeline.transformer):
            component.to(device)
        return None
    streams = None
    if plan.num_slots:
        text, streams = _stream(model, plan)
    else:
        text = Weights(encoders, device)
    parts = {"text": text}
    evicted = {"transformer": ["text"], "vae": ["text"]}
    if plan.policy == "model":
        parts["transformer"] = Weights([pipeline.transformer], device)
        evicted["text"] = ["transformer"]
        if plan.vae_alone:
            evicted["vae"].append("transformer")
    elif plan.policy == "text_encoders":
        pipeline.transformer.to(device)
    model.weight_streaming = WeightStreaming(parts, evicted)
    return streams


def _stream(model: Flux1Model, plan: OffloadPlan) -> tuple[Weights, tuple[BlockStream, BlockStream]]:
    """Stream the blocks of the transformer and of T5. Returns the rest of the text encoders, and the streams."""
    pipeline, device = model.pipeline, model.device
    transformer, t5_blocks = pipeline.transformer, pipeline.text_encoder_2.encoder.block
    blocks = _blocks(transformer)
    modulations = [layer for block in blocks for layer in modulation_layers(block)]
    slots, (num_blocks, num_modulations) = Slots(plan.num_slots, device), plan.num_resident
    streams = (
        BlockStream(blocks, slots, device, num_blocks, excluded=[_not_streamed(block) for block in blocks]),
        BlockStream(modulations, slots, device, num_modulations),
    )
    for name, child in transformer.named_children():
        if name not in ("transformer_blocks", "single_transformer_blocks"):
            child.to(device)
    for layer in (layer for block in blocks for layer in ip_layers(block)):
        layer.to(device)
    BlockStream(t5_blocks, slots, device).register_hooks(t5_blocks)
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2, *model.pictures.modules]
    return Weights(encoders, device, excluded=t5_blocks), streams


def _not_streamed(block: Any) -> list[torch.nn.Module]:
    """The layers of a block that are called outside of it."""
    return [*modulation_layers(block), *ip_layers(block)]


def weight_bytes(
    modules: Iterable[Any],
    is_eight_bits: Callable[[torch.nn.Linear], bool] = lambda _: False,
    excluded: Iterable[torch.nn.Module] = (),
) -> int:
    """Bytes of the parameters and buffers of `modules`, each counted once. Components that are not modules are skipped.

    Args:
        modules: components of a pipeline.
        is_eight_bits: whether the weight of a layer will be stored in 8 bits, with a float32 scale per row.
        excluded: modules whose weights are not counted.
    """
    counted = {id(tensor) for module in excluded for tensor in (*module.parameters(), *module.buffers())}
    total = 0
    for module in modules:
        if not isinstance(module, torch.nn.Module):
            continue
        for part in module.modules():
            shrinks = isinstance(part, torch.nn.Linear) and is_eight_bits(part)
            for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                if id(tensor) in counted:
                    continue
                counted.add(id(tensor))
                if shrinks and name == "weight":
                    total += tensor.numel() + 4 * tensor.shape[0]
                else:
                    total += tensor.numel() * tensor.element_size()
    return total


def _controlnets(pipeline: Any) -> list[Any]:
    """The ControlNet, if there is one."""
    controlnet = getattr(pipeline, "controlnet", None)
    return [] if controlnet is None else [controlnet]


def _blocks(transformer: Any) -> list[Any]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def _never(_: torch.nn.Linear) -> bool:
    return False


def _always(_: torch.nn.Linear) -> bool:
    return True
