"""Times denoising steps with a hook: it marks the device's clock whenever the transformer's last layer runs."""

from __future__ import annotations

import time
from typing import Any

import torch


class StepClock:
    """Collects a mark per step. It never waits for the device."""

    def __init__(self, transformer: Any, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        transformer.proj_out.register_forward_hook(self._mark)

    def take(self, steps: int) -> list[float]:
        """Remove all marks, and return the mean seconds per step between the first and the last mark in a list.

        The list is empty if there are fewer than two steps or marks. The device must have finished all its work.

        Args:
            steps: number of steps since the last call. A step has several marks if it evaluates the transformer
                several times.
        """
        marks, self._marks = self._marks, []
        if len(marks) < 2 or steps < 2:
            return []
        first, last = marks[0], marks[-1]
        seconds = last - first if isinstance(first, float) else first.elapsed_time(last) / 1000
        return [seconds / (len(marks) - 1) * (len(marks) / steps)]

    def _mark(self, *_: Any) -> None:
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)
