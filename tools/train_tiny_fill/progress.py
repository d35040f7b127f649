"""Code that all stages share: optimizer, learning rate, average of the weights, and log of the losses."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.train_tiny_fill import STARTED
from tools.train_tiny_fill.settings import Stage

_AVERAGE_EVERY = 8
_WARM_UP_STEPS = 3


class Log:
    """Writes JSON lines to a file and to standard output."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, stage: str, **values: float) -> None:
        """Append one line with `values`. `wall_s` is the time since the start of the program."""
        line: dict[str, str | float] = {"stage": stage, "wall_s": round(time.monotonic() - STARTED, 1)}
        line |= {name: float(f"{value:.5g}") for name, value in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


class Average:
    """An exponential moving average of weights. The decay grows during the training up to `decay` per step."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self._live = [parameter for module in modules for parameter in module.parameters()]
        self._mean = [parameter.detach().clone() for parameter in self._live]
        self._decay = decay**_AVERAGE_EVERY

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after `step` steps to the average. It does so only at every `_AVERAGE_EVERY`-th step."""
        if step % _AVERAGE_EVERY == 0:
            updates = step / _AVERAGE_EVERY
            rate = 1 - min(self._decay, (1 + updates) / (10 + updates))
            torch._foreach_lerp_(self._mean, [parameter.detach() for parameter in self._live], rate)

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the average into the modules."""
        torch._foreach_copy_([parameter.data for parameter in self._live], self._mean)


class Trainer:
    """Trains modules with AdamW on the sum of the losses.

    `losses` draws a batch and returns its losses by name. A loss whose name begins with '_' is only logged. On a GPU,
    the whole step is one CUDA graph, from drawing the batch to updating the weights: launching its kernels one by one
    would take several times as long.
    """

    def __init__(self, stage: Stage, modules: list[nn.Module], losses: Callable[[], dict[str, Tensor]]) -> None:
        self._losses = losses
        self._parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        device = self._parameters[0].device
        on_gpu = device.type == "cuda"
        self._rate = torch.zeros((), device=device)
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=self._rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=on_gpu,
            foreach=False,
            capturable=on_gpu,
        )
        self.names: list[str] = []
        self._sums = torch.zeros(16, device=device)
        self._run_step = self._capture() if on_gpu and stage.graph else self._step

    def step(self, rate: float) -> None:
        """Run one step with learning rate `rate`. Does not wait for the device."""
        self._rate.fill_(rate)
        self._run_step()

    def means(self, steps: int) -> dict[str, float]:
        """Mean losses since the last call, which was `steps` steps ago. Waits for the device."""
        values = (self._sums / steps).tolist()
        self._sums.zero_()
        return dict(zip(self.names, values, strict=False))

    def close(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        parts = self._losses()
        total = torch.stack([value for name, value in parts.items() if not name.startswith("_")]).sum()
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self.names = [*(name.lstrip("_") for name in parts), "norm"]
        self._sums[: len(self.names)] += torch.stack([*parts.values(), norm]).detach()

    def _capture(self) -> Callable[[], None]:
        """Capture the step as a CUDA graph. The warm-up steps have learning rate 0, so they do not change weights."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._step()
        self._sums.zero_()
        return graph.replay


def optimize(
    name: str, stage: Stage, modules: list[nn.Module], losses: Callable[[], dict[str, Tensor]], log: Log
) -> None:
    """Train `modules` for `stage.steps` steps. They end with their averaged weights."""
    trainer = Trainer(stage, modules, losses)
    average = Average(modules, stage.ema)
    log.write(f"{name} ready")
    last, logged = time.monotonic(), 0
    for step in range(1, stage.steps + 1):
        progress = (step - 1) / stage.steps
        rate = stage.rate * min(1.0, step / stage.warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        trainer.step(rate)
        average.update(step - 1)
        if step % stage.log_every == 0 or step == stage.steps:
            means = trainer.means(step - logged)
            now = time.monotonic()
            log.write(name, step=step, rate=rate, per_s=(step - logged) / (now - last), **means)
            last, logged = now, step
    average.restore()
    trainer.close()


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a GPU. On a CPU it does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def round_weights(*modules: nn.Module) -> None:
    """Round weights to bfloat16, in which they are exported. Later stages then train with the exported values."""
    for module in modules:
        for parameter in module.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).to(parameter.dtype))
