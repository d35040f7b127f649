"""Which tasks a session makes: retries, suspects and quarantine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.data import open_dataset
from fluxexp.experiment.pending_tasks import QUARANTINED, PendingTasks, find_pending
from fluxexp.plan import Plan
from fluxexp.records import Record
from fluxexp.storage.attempts import AttemptLog, WorkerProcess
from fluxexp.storage.process_deaths import DeathRegister

Compose = Callable[..., RunConfig]
Planned = Callable[..., Plan]


@pytest.fixture
def planned(compose: Compose, tmp_path: Path) -> Planned:
    def plan(*overrides: str) -> Plan:
        config = compose("model=fake", "dataset.length=6", *overrides)
        return Plan.of(config, open_dataset(config.dataset), Address.of(tmp_path))

    return plan


def record(plan: Plan, number: int, *, attempt: int = 1, error: str = "broken") -> Record:
    return Record.of(plan.task(number), error=error, rank=0, device="CPU", attempt=attempt, inputs=None)


def fail(plan: Plan, number: int, *, attempt: int = 1) -> None:
    plan.directory.writer.manifest().append(record(plan, number, attempt=attempt))


def die(plan: Plan, *numbers: int) -> None:
    """A process begins these tasks, and never closes its stream."""
    log = AttemptLog(plan.directory.store, WorkerProcess.current("session", 0))
    log.begin([plan.task(number).key for number in numbers])


def pending(plan: Plan) -> PendingTasks:
    plan.directory.reader.refresh_records()
    return find_pending(plan, DeathRegister(plan.directory.store).count())


@pytest.mark.parametrize(
    ("retries", "made"), [("null", [0, 1, 2, 3, 4, 5]), ("0", [0, 2, 3, 4, 5]), ("1", [0, 1, 2, 3, 4, 5])]
)
def test_retries_limit_the_sessions_that_try_a_failed_task(planned: Planned, retries: str, made: list[int]) -> None:
    plan = planned(f"failures.retries={retries}")
    fail(plan, 1)
    found = pending(plan)
    assert list(found.numbers) == made
    assert dict(found.attempts) == ({1: 1} if 1 in made else {})
    assert found.num_given_up == 6 - len(made)


def test_a_task_that_failed_too_often_is_given_up(planned: Planned) -> None:
    plan = planned("failures.retries=2")
    fail(plan, 1, attempt=2)
    assert 1 in pending(plan).numbers
    fail(plan, 1, attempt=3)
    assert 1 not in pending(plan).numbers


def test_a_task_becomes_a_suspect_then_gets_a_last_chance_then_is_quarantined(planned: Planned) -> None:
    plan = planned()
    die(plan, 1, 2)
    first = pending(plan)
    assert (list(first.numbers), first.suspects, first.last_chances) == ([0, 1, 2, 3, 4, 5], [1, 2], [])
    die(plan, 1)
    second = pending(plan)
    assert (second.suspects, second.last_chances) == ([2], [1])
    die(plan, 1)
    third = pending(plan)
    assert (list(third.numbers), third.suspects, third.last_chances, third.num_given_up) == (
        [0, 2, 3, 4, 5],
        [2],
        [],
        1,
    )
    quarantined = plan.directory.reader.records()[plan.task(1).key]
    assert quarantined.status == "failed"
    assert str(quarantined.error).startswith(f"{QUARANTINED}3 processes died")
    again = pending(plan)
    assert again == third, "it has one record"
    assert plan.directory.reader.records()[plan.task(1).key].attempt == 1


def test_a_higher_limit_tries_a_quarantined_task_once_more(planned: Planned) -> None:
    for _ in range(3):
        die(planned(), 1)
        pending(planned())
    more = planned("failures.max_process_deaths=4", "failures.retries=0")
    found = pending(more)
    assert found.last_chances == [1]
    die(more, 1)
    assert pending(more).num_given_up == 1
    assert "4 processes died" in str(more.directory.reader.records()[more.task(1).key].error)


def test_without_a_limit_suspects_are_made_alone_for_ever(planned: Planned) -> None:
    plan = planned("failures.max_process_deaths=null")
    for _ in range(5):
        die(plan, 1)
        found = pending(plan)
        assert (found.suspects, found.last_chances, found.num_given_up) == ([1], [], 0)
