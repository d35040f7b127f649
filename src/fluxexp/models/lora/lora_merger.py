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
from fluxexp.models.kernels.fp8_linear import Fp8Linear
from fluxexp.models.kernels.host_memory import Uploads
from fluxexp.models.kernels.merged_projections import merged_rows
from fluxexp.models.lora.lora_tensors import LoraTensors, LowRank, read_lora
from fluxexp.models.lora.original_weights import OriginalWeights
from fluxexp.records import LoraUse

_CACHED_BYTES = 4 << 30
"""Host memory of the files that were read last."""


@dataclass(slots=True)
class _Change:
    """What is added to one layer of the module, which may hold the rows of several layers."""

    layer: Any
    parts: list[tuple[slice, LowRank, float]] = field(default_factory=list)
    """Rows, factors, and scale."""


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
        self._originals = OriginalWeights(device)
        self._uploads = Uploads(device)
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
            layers = {name: change.layer for name, change in changes.items()}
            restored = {name: _Change(layer) for name, layer in self._changed[component].items() if name not in layers}
            all_changes = {**restored, **changes}
            self._originals.keep({f"{component}.{name}": change.layer for name, change in all_changes.items()})
            self._uses[component] = None  # until all is written: an error in between leaves a mixture
            self._changed[component] |= layers
            self._write(component, all_changes)
            self._changed[component] = layers
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

    def _write(self, component: str, changes: Mapping[str, _Change]) -> None:
        """Write the loaded weights of each layer, with its changes added."""
        sources = (self._sources(f"{component}.{name}", change) for name, change in changes.items())
        for (name, change), tensors in zip(changes.items(), self._uploads.ahead(sources), strict=True):
            layer, original = change.layer, self._originals[f"{component}.{name}"]
            if not tensors:
                layer.weight.copy_(original.weight, non_blocking=True)
            elif name.endswith(".weight"):  # of a norm, which is replaced
                layer.weight.copy_(tensors[1])
            else:
                merged = self._merged(tensors, change.parts)
                if isinstance(layer, Fp8Linear):
                    layer.requantize(merged)
                else:
                    layer.weight.copy_(merged, non_blocking=True)
            if original.bias is not None:
                _write_bias(layer, original.bias, change.parts)
        if self._device.type == "cuda" and not all(change.layer.weight.is_cuda for change in changes.values()):
            torch.cuda.current_stream(self._device).synchronize()  # weights on the host may be read from now on

    def _sources(self, name: str, change: _Change) -> list[torch.Tensor]:
        """What the device needs for the new weight: the original and all factors. Empty: the original replaces it."""
        original = self._originals[name].weight
        weight = change.layer.original if original is None else original
        if not change.parts and original is not None:
            return []
        # In their own dtype: the host would need longer to convert them than to copy them.
        return [weight, *(factor for _, low_rank, _ in change.parts for factor in (low_rank.down, low_rank.up))]

    def _merged(self, tensors: Sequence[torch.Tensor], parts: Sequence[tuple[slice, LowRank, float]]) -> torch.Tensor:
        """The original and the factors of `_sources` as one weight."""
        weight, *factors = tensors
        if not parts:
            return weight
        total = weight.to(torch.float32, copy=True)
        for (rows, _, scale), down, up in zip(parts, factors[::2], factors[1::2], strict=True):
            # Fewer columns: as if zeros were behind them. A LoRA for FLUX.1-dev knows only the latents of Fill.
            total[rows, : down.shape[1]].addmm_(up.to(torch.float32), down.to(torch.float32), alpha=scale)
        return total.to(weight.dtype)


def _write_bias(layer: Any, original: torch.Tensor, parts: Sequence[tuple[slice, LowRank, float]]) -> None:
    bias = original.to(torch.float32, copy=True)
    for rows, low_rank, scale in parts:
        if low_rank.bias is not None:
            bias[rows] += scale * low_rank.bias.to(bias.device, torch.float32)
    layer.bias.copy_(bias)


def _header(path: str) -> LoraHeader:
    try:
        return lora_header(path)
    except ComponentError as error:
        raise SampleError(f"LoRA {path} {error}: {error.hint}") from error


def _num_bytes(tensors: LoraTensors) -> int:
    return sum(low_rank.num_bytes for low_rank in tensors.layers.values())
