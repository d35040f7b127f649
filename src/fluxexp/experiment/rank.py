"""One rank's part of a run: load the model, work through the share, and say how it went."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

from fluxexp import __version__
from fluxexp.errors import FluxexpError
from fluxexp.experiment.agreement import Agreement
from fluxexp.models.base import Model
from fluxexp.models.loading import load_model
from fluxexp.parallel.sharding import static_share
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.telemetry import DeviceSampler, EventLog, RankTotals
from fluxexp.worker import Prepared, ResultWriter, Worker


class RankRun:
    """What one rank does and measures. `figures` may be called from another thread while `work` runs."""

    def __init__(
        self, topology: Topology, agreement: Agreement, on_image: Callable[[Record, Prepared], None] | None = None
    ) -> None:
        self._topology = topology
        self._agreement = agreement
        self._on_image = on_image
        self._totals = RankTotals()
        self._sampler = DeviceSampler.of(topology.device_uuid)
        self._model: Model | None = None
        self._is_over = False

    def work(self) -> dict[str, Any]:
        """Make this rank's tasks; how it went, as JSON-able values. An error ends this rank's work, not the run's."""
        error: str | None = None
        events = EventLog(
            self._agreement.plan.directory.events / f"rank-{self._topology.rank:04d}-{self._agreement.session}.jsonl",
            synchronise=self._topology.synchronise,
            listeners=[self._totals.add],
        )
        with events, self._sampler:
            try:
                self._make_share(events)
            except FluxexpError as raised:
                error = str(raised)
            except Exception as raised:
                traceback.print_exc()  # not foreseen: whoever looks into it needs the place
                error = f"{type(raised).__name__}: {raised}"
        self._is_over = True
        return self._result(error)

    def figures(self) -> dict[str, Any]:
        """Where this rank stands."""
        reading = self._sampler.latest()
        return {
            **self._totals.snapshot(),
            "utilisation": reading.utilisation if reading else None,
            "memory_gib": reading.memory_gib if reading else None,
            "is_over": self._is_over,
        }

    def _make_share(self, events: EventLog) -> None:
        plan = self._agreement.plan
        share = static_share(self._agreement.pending)
        if not share:
            return
        with events.span("load"):
            self._model = load_model(plan.config, self._topology.device, self._topology.rank)
        provenance = {"model": plan.config.model.name, "fluxexp": __version__}
        writer = ResultWriter(plan.directory, plan.config.output, provenance, events, self._count)
        try:
            worker = Worker(
                self._model, plan.dataset, plan.config, self._topology, writer, events, self._agreement.attempts
            )
            self._sampler.restart_mean()
            worker.run(plan.tasks(share))
        finally:
            with events.span("wait", reason="write"):
                writer.close()

    def _count(self, record: Record, item: Prepared | None) -> None:
        self._totals.count(images=int(record.status == "ok"), failed=int(record.status == "failed"))
        if item is not None and self._on_image is not None:
            self._on_image(record, item)

    def _result(self, error: str | None) -> dict[str, Any]:
        peak_gib = self._topology.peak_memory_gib()
        return {
            **self._totals.snapshot(),
            "rank": self._topology.rank,
            "device": self._topology.device_name,
            "utilisation_mean": self._sampler.mean_utilisation(),
            "memory_peak_gib": peak_gib if peak_gib is not None else self._sampler.peak_memory_gib(),
            "applied_optimizations": self._model.applied_optimizations if self._model else [],
            "finished_s": time.time(),
            "error": error,
        }


def no_result(topology: Topology, error: str) -> dict[str, Any]:
    """The result of a rank that never came to work."""
    return {
        **RankTotals().snapshot(),
        "rank": topology.rank,
        "device": topology.device_name,
        "utilisation_mean": None,
        "memory_peak_gib": None,
        "applied_optimizations": [],
        "finished_s": time.time(),
        "error": error,
    }
