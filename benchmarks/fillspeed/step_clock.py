"""Times denoising steps from outside: marks the device's own clock whenever the transformer's last layer is called."""

from __future__ import annotations

import time
from typing import Any

import torch


class StepClock:
    """Marks since the last `take`. Waits for nothing while steps are going on."""

    def __init__(self, transformer: Any, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        transformer.proj_out.register_forward_hook(self._mark)

    def take(self) -> list[float]:
        """Mean seconds between the ends of the first step and the last; empty where there were fewer than two.

        The device must have done all that it was given.
        """
        marks, self._marks = self._marks, []
        if len(marks) < 2:
            return []
        first, last = marks[0], marks[-1]
        seconds = last - first if isinstance(first, float) else first.elapsed_time(last) / 1000
        return [seconds / (len(marks) - 1)]

    def _mark(self, *_: Any) -> None:
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)
