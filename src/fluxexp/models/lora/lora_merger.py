"""Merges LoRAs into the weights of a module, in place, and restores the weights.

A merged weight is `W + sum(scale * B @ A)`, computed in float32 on the device and rounded once. Each change starts from
a copy of the loaded weights, so that no rounding accumulates. All values are written into the memory that the weights
have: CUDA graphs and compiled code stay valid, and nothing is captured or compiled again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fluxexp.config.lora_checks import is_control_lora, require_fit
from fluxexp.config.lora_files import LoraHeader, lora_header
from fluxexp.config.weight_headers import ComponentError, Shapes
from fluxexp.errors import SampleError
from fluxexp.models.kernels.fp8_linear import Fp8Linear, host_copy
from fluxexp.models.kernels.merged_projections import merged_rows
from fluxexp.models.lora.lora_tensors import LoraTensors, LowRank, read_lora
from fluxexp.parallel.topology import free_memory_bytes
from fluxexp.records import LoraUse

_CACHED_BYTES = 4 << 30
"""Host memory of the files that were read last."""
_DEVICE_SHARE = 0.4
"""Copies of loaded weights stay on a GPU only if this share of its memory is free with them."""


@dataclass(slots=True)
class _Change:
    """What is added to one layer of the module, which may hold the rows of several layers."""

    layer: Any
    parts: list[tuple[slice, LowRank, float]] = field(default_factory=list)
    """Rows, factors, and scale."""


@dataclass(frozen=True, slots=True)
class _Original:
    """Copies of the loaded weights of one layer."""

    weight: torch.Tensor | None
    """None: the layer has it itself (`Fp8Linear.original`)."""
    bias: torch.Tensor | None


class LoraMerger:
    """The LoRAs of a model. Not thread-safe: work on the device must be queued by the thread that calls it.

    Args:
        modules: the components that LoRAs change, by name (`transformer`, `text_encoder`), before optimizations.
        device: where the weights are used.
        unload: moves weights that are streamed back to the host, where they are changed. It waits for the device.
    """

    def __init__(
        self, modules: Mapping[str, torch.nn.Module], device: torch.device, unload: Callable[[str], None]
    ) -> None:
        self.keeps_quantized = False
        """Whether layers that are quantized keep their original weights."""
        self.control_channels: int | None = None
        """Input channels of a text-to-image model that was widened, so that it needs a Control LoRA."""
        self._modules = {name: getattr(module, "text_model", module) for name, module in modules.items()}
        self._device = device
        self._unload = unload
        self._shapes: Mapping[str, Shapes] = {
            name: {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
            for name, module in self._modules.items()
        }
        self._uses: dict[str, tuple[LoraUse, ...] | None] = dict.fromkeys(modules, ())
        self._changed: dict[str, dict[str, Any]] = {name: {} for name in modules}
        """The layers that are changed now, by component and name."""
        self._originals: dict[str, _Original] = {}
        self._files: OrderedDict[str, LoraTensors] = OrderedDict()

    def changes_text(self, uses: Sequence[LoraUse]) -> bool:
        """Whether one of the LoRAs changes CLIP. Raises a SampleError if a file is not a LoRA."""
        return any(use.scale and _header(use.path).changes_text for use in uses)

    def read(self, uses: Sequence[LoraUse]) -> None:
        """Read the files of these LoRAs, if they are not in memory. `apply` would fail with the same error.

        Raises:
            SampleError: a file cannot be read, or does not fit the model, or the model needs a Control LoRA.
        """
        channels = self.control_channels
        if channels is not None and not any(is_control_lora(_header(use.path), channels) for use in uses):
            names = ", ".join(use.path for use in uses) or "none"
            raise SampleError(
                f"LoRA {names}: no Control LoRA, without which a text-to-image model ignores control images: add one, "
                "or use a Control checkpoint"
            )
        for use in uses:
            if use.scale:
                self._file(use.path)

    def tensors(self, uses: Sequence[LoraUse]) -> list[tuple[LoraTensors, float]]:
        """The content of these LoRAs, with their scales. Raises a SampleError as `read`."""
        return [(self._file(use.path), use.scale) for use in uses if use.scale]

    def apply(self, component: str, uses: Sequence[LoraUse]) -> None:
        """Let exactly the LoRAs `uses` be merged into `component`.

        Raises:
            SampleError: a file cannot be read, or does not fit the model. Then the weights stay as they are.
        """
        wanted = tuple(use for use in uses if use.scale)
        if wanted == self._uses[component]:
            return
        with torch.inference_mode(False), torch.no_grad():
            changes = self._collect(component, wanted)  # may fail, so nothing is changed before
            self._unload(component)
            self._uses[component] = None  # until all is written: an error in between leaves a mixture
            changed = self._changed[component]
            for name in [name for name in changed if name not in changes]:
                self._write(component, name, changed[name], ())
                del changed[name]
            for name, change in changes.items():
                changed[name] = change.layer
                self._write(component, name, change.layer, change.parts)
        self._uses[component] = wanted

    def restore(self) -> None:
        """Restore the loaded weights of all components."""
        for component in self._modules:
            self.apply(component, ())

    def _collect(self, component: str, uses: Sequence[LoraUse]) -> dict[str, Any]:
        """All changes of the component, by the name of the layer that has the weight."""
        changes: dict[str, Any] = {}
        for use in uses:
            tensors = self._file(use.path)
            for name, low_rank in tensors.layers.items():
                if name.startswith(f"{component}."):
                    layer_name, layer, rows = self._place(component, name.removeprefix(f"{component}."))
                    change = changes.setdefault(layer_name, _Change(layer))
                    change.parts.append((rows, low_rank, use.scale * low_rank.scale))
            if component == "transformer":
                for name, value in tensors.norms.items():
                    norm = self._modules[component].get_submodule(name.removesuffix(".weight"))
                    changes[name] = _Change(norm, [(slice(None), LowRank(value, value, None, 1.0), 1.0)])
        return changes

    def _file(self, path: str) -> LoraTensors:
        """The content of a file, which is read once; it stays in host memory. Raises a SampleError if it is wrong."""
        if path not in self._files:
            try:
                require_fit(_header(path), self._shapes)
            except ComponentError as error:
                raise SampleError(f"LoRA {path} {error}: {error.hint}") from error
            self._files[path] = read_lora(path)
            while len(self._files) > 1 and sum(map(_num_bytes, self._files.values())) > _CACHED_BYTES:
                self._files.popitem(last=False)
        self._files.move_to_end(path)
        return self._files[path]

    def _place(self, component: str, name: str) -> tuple[str, Any, slice]:
        """Name of the layer that has the weight of layer `name`, the layer, and the rows of the weight."""
        parent_name, _, last = name.rpartition(".")
        merged = merged_rows(self._modules[component].get_submodule(parent_name), last)
        name, rows = (name, slice(None)) if merged is None else (f"{parent_name}.{merged[0]}", merged[1])
        layer = self._modules[component].get_submodule(name)
        if isinstance(layer, Fp8Linear) and layer.original is None:
            raise SampleError(
                f"a LoRA cannot be merged into {component}.{name}, which was loaded without the weights before "
                "quantization: use optimization.fp8_linears=false, or lora=none"
            )
        if not isinstance(layer, (torch.nn.Linear, Fp8Linear)):
            raise SampleError(
                f"a LoRA cannot be merged into {component}.{name}, a {type(layer).__name__}: use weights that are not "
                "quantized (model.path), or lora=none"
            )
        return name, layer, rows

    def _write(self, component: str, name: str, layer: Any, parts: Sequence[tuple[slice, LowRank, float]]) -> None:
        """Write a layer's loaded weights, with `parts` added."""
        original = self._original(f"{component}.{name}", layer)
        if name.endswith(".weight"):  # of a norm
            layer.weight.copy_(parts[0][1].down if parts else original.weight)
            return
        weight = layer.original if original.weight is None else original.weight
        if not parts and not isinstance(layer, Fp8Linear):
            layer.weight.copy_(weight, non_blocking=True)
        else:
            merged = weight.to(self._device, non_blocking=True)
            merged = self._merged(merged, parts) if parts else merged
            if isinstance(layer, Fp8Linear):
                layer.requantize(merged)
            else:
                layer.weight.copy_(merged)
        if original.bias is not None:
            bias = original.bias.to(torch.float32, copy=True)
            for rows, low_rank, scale in parts:
                if low_rank.bias is not None:
                    bias[rows] += scale * low_rank.bias.to(bias.device, torch.float32)
            layer.bias.copy_(bias)

    def _merged(self, weight: torch.Tensor, parts: Sequence[tuple[slice, LowRank, float]]) -> torch.Tensor:
        total = weight.to(torch.float32, copy=True)
        for rows, low_rank, scale in parts:
            # The device converts: the host would need longer for it than for the copy.
            both = (x.to(self._device, non_blocking=True) for x in (low_rank.down, low_rank.up))
            down, up = (x.to(torch.float32) for x in both)
            # Fewer columns: as if zeros were behind them. A LoRA for FLUX.1-dev knows only the latents of Fill.
            total[rows, : down.shape[1]].addmm_(up, down, alpha=scale)
        return total.to(weight.dtype)

    def _original(self, name: str, layer: Any) -> _Original:
        """Copies of a layer's weights as they were loaded. They are made before the first change."""
        if name not in self._originals:
            own = None if isinstance(layer, Fp8Linear) else self._copy(layer.weight.detach())
            bias = getattr(layer, "bias", None)
            self._originals[name] = _Original(own, None if bias is None else bias.detach().clone())
        return self._originals[name]

    def _copy(self, weight: torch.Tensor) -> torch.Tensor:
        if weight.is_cuda and self._has_room(weight):
            return weight.clone()
        return host_copy(weight, is_pinned=self._device.type == "cuda")  # also if it is streamed, so on the host

    def _has_room(self, weight: torch.Tensor) -> bool:
        free = free_memory_bytes(weight.device)
        total = torch.cuda.get_device_properties(weight.device).total_memory
        return free is not None and free - weight.nbytes >= _DEVICE_SHARE * total


def _header(path: str) -> LoraHeader:
    try:
        return lora_header(path)
    except ComponentError as error:
        raise SampleError(f"LoRA {path} {error}: {error.hint}") from error


def _num_bytes(tensors: LoraTensors) -> int:
    return sum(low_rank.num_bytes for low_rank in tensors.layers.values())
