"""`engine=ray`: this process plans, deals chunks of tasks to actors, and finalizes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import uuid
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from fluxexp.address import Address
from fluxexp.config.engine_checks import parse_resources, read_runtime_env
from fluxexp.config.schema import RayEngineConfig, RunConfig
from fluxexp.errors import ConfigError, Problem, StorageError
from fluxexp.experiment.engine.foreman import Foreman
from fluxexp.experiment.engine.group_piles import group_piles
from fluxexp.experiment.engine.ray_pool import ActorNeeds, RayPool
from fluxexp.experiment.engine.worker_messages import WorkerSession
from fluxexp.experiment.run_monitor import RunMonitor
from fluxexp.experiment.session_messages import SESSION, RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.session_stop import SessionStop
from fluxexp.experiment.work_layout import WorkLayout
from fluxexp.experiment.workforce import WorkResults
from fluxexp.interruption import ENDS_AT_ONCE, WARNINGS
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.topology import Topology
from fluxexp.storage.result_files import ENGINE_MARKER
from fluxexp.telemetry import say
from fluxexp.version import __version__

_ANSWER_S = 10.0
_OBJECT_STORE_BYTES = 80 << 20
"""Of Ray on this machine, if this process starts it. Only the session passes it, no images."""


class RayWorkforce:
    """See `Workforce`. The ranks of the actors begin at 1, and this process is rank 0. It makes no images."""

    def __init__(self, config: RunConfig, engine: RayEngineConfig, root: Address) -> None:
        self.topology = Topology(0, 1, torch.device("cpu"), LocalCoordinator())
        self._engine = engine
        self._root = root
        self._parallelism = config.parallelism
        self._has_started = False
        self._pool: RayPool | None = None

    def describe(self, session_plan: SessionPlan) -> str:
        """See `Workforce`."""
        where = "started on this machine" if self._engine.address is None else self._engine.address
        number = "as many as fit" if self._engine.num_actors is None else str(self._engine.num_actors)
        return f"engine     ray ({where}), {number} actor(s), chunks of {self._engine.chunk_s:g} s"

    def make_images(self, session_plan: SessionPlan, stop: SessionStop, run_monitor: RunMonitor) -> WorkResults:
        """See `Workforce`."""
        self._connect()
        needs = self._needs()
        announced = SESSION.read(self.topology.coordinator)
        assert announced is not None
        assert announced.session is not None
        marker, store = uuid.uuid4().hex.encode(), session_plan.directory.store
        store.put(ENGINE_MARKER, marker)
        session = WorkerSession(
            announced=replace(announced.session, work_layouts=self._layouts(session_plan)),
            root=str(self._root),
            working_directory=str(Path.cwd()),
            marker=marker,
            version=__version__,
        )
        self._pool = RayPool(session, needs, self._engine.num_actors)
        piles = group_piles(session_plan, is_cpu=not needs.num_gpus)
        foreman = Foreman(session_plan, piles, self._pool, self._engine.chunk_s, stop, run_monitor)
        try:
            return WorkResults(foreman.lead())
        finally:
            with suppress(OSError, StorageError):  # a marker that stays is harmless
                store.delete(ENGINE_MARKER)

    def scoring_ranks(self, results: Mapping[int, RankResult]) -> Collection[int]:
        """See `Workforce`: this process."""
        return (0,)

    def close(self) -> None:
        """See `Workforce`: end the actors, and Ray if this process has started it."""
        if self._pool is not None:
            self._pool.close()
        if self._has_started:
            self._has_started = False
            ray.shutdown()

    @property
    def _size(self) -> int:
        """Number of actors that make each image together."""
        return (self._parallelism.context_size or 1) if self._parallelism.mode == "context" else 1

    def _layouts(self, session_plan: SessionPlan) -> tuple[WorkLayout, ...]:
        """The work layout as each replica sees it: it is alone."""
        return (WorkLayout(1, self._size, "engine=ray"),) * len(session_plan.work_layouts)

    def _connect(self) -> None:
        """Connect to the cluster, or start Ray on this machine.

        Raises:
            ConfigError: the cluster does not answer.
        """
        if ray.is_initialized():
            return
        _require_answer(self._engine.address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"runtime_env": read_runtime_env(self._engine.runtime_env)}
        if self._engine.address is None:
            options |= {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
        with _own_signal_handlers():
            try:
                ray.init(address=self._engine.address or "local", configure_logging=False, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise _no_answer(self._engine.address, error) from error
        self._has_started = True

    def _needs(self) -> ActorNeeds:
        num_gpus = self._engine.gpus_per_actor
        if num_gpus is None:
            has_gpus = ray.cluster_resources().get("GPU", 0.0) > 0
            num_gpus = (
                1.0 if self._parallelism.device == "cuda" or (self._parallelism.device == "auto" and has_gpus) else 0.0
            )
        needs = ActorNeeds(
            num_gpus=num_gpus,
            num_cpus=self._engine.cpus_per_actor,
            resources=parse_resources(self._engine.resources),
            max_restarts=self._engine.max_restarts,
            size=self._size,
        )
        say(f"actors     {needs} each" + (f", {self._size} make each image together" if self._size > 1 else ""))
        return needs


def _require_answer(address: str | None) -> None:
    """Check that something listens at an address, because Ray tries to connect for minutes.

    Raises:
        ConfigError: nothing does.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # Ray finds it
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str | None, error: Exception) -> ConfigError:
    what = f"is no Ray cluster that answers: {str(error).splitlines()[0]}"
    hint = "start Ray there (`ray start`), or use null to start it on this machine"
    return ConfigError(Problem("engine.address", what, "null" if address is None else address, hint))


@contextmanager
def _own_signal_handlers() -> Generator[None]:
    """Restore the handlers of this process: `ray.init` replaces that of SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (*ENDS_AT_ONCE, *WARNINGS)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
