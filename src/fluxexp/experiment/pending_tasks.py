"""The tasks that a session makes: without those that failed too often, and with those that may end a process apart.

A task that was in work when a process died is a suspect: it is made alone, so that the next death blames only one task.
A suspect that would be quarantined after one more death has its last chance: no other such task is in work anywhere,
because a launcher may end all processes when one dies. After `failures.max_process_deaths` deaths it is quarantined:
rank 0 writes a failed record for it, and no session tries it again, unless the user raises the number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fluxexp.config.schema import FailuresConfig
from fluxexp.plan import Plan
from fluxexp.records import Record, Task
from fluxexp.storage.process_deaths import DeathRegister, Deaths, ProcessDeath

QUARANTINED = "quarantined: "
"""Begin of the error of a quarantined task."""


@dataclass(slots=True)
class PendingTasks:
    """The tasks of one run that a session makes, by number. All lists are sorted."""

    numbers: list[int] = field(default_factory=list)
    """All of them, also `suspects` and `last_chances`."""
    attempts: dict[str, int] = field(default_factory=dict)
    """Number of earlier attempts, by task key, without those that were never tried."""
    suspects: list[int] = field(default_factory=list)
    last_chances: list[int] = field(default_factory=list)
    num_given_up: int = 0
    """Tasks that failed, and that this session does not try again."""


def find_pending(plan: Plan, deaths: Deaths) -> PendingTasks:
    """Find the tasks to make from the manifest and from the deaths of processes, and quarantine what is due.

    Rank 0 calls it before the session, and may call it again when it has lost a rank:
    `find_pending(plan, DeathRegister(store).count(session=..., ranks=lost))`, after `refresh_records`.

    Raises:
        StorageError, OSError: the manifest is damaged, or cannot be written.
    """
    outcomes = plan.directory.reader.outcomes()
    unmade = plan.pending(outcomes)
    if not outcomes and not deaths:
        return PendingTasks(unmade)
    found, due = PendingTasks(), list[tuple[Task, Sequence[ProcessDeath], int]]()
    forgotten = [key for key in deaths if key in outcomes and outcomes[key].status == "ok"]
    for number in unmade:
        task = plan.task(number)
        record = outcomes.get(task.key)
        current = None if record is None else plan.result(task, outcomes)
        own = deaths.get(task.key, ())
        if own and record is not None and current is None and _is_quarantine(record):  # other content: a new chance
            forgotten.append(task.key)
            own = ()
        if _is_given_up(current, own, plan.config.failures):
            found.num_given_up += 1
        elif _has_quarantine(own, plan.config.failures):
            due.append((task, own, 1 if record is None else record.attempt + 1))
            found.num_given_up += 1
        else:
            found.numbers.append(number)
            if record is not None:
                found.attempts[task.key] = record.attempt
            _sort_in(number, own, plan.config.failures, found)
    DeathRegister(plan.directory.store).forget(deaths, forgotten)
    _quarantine(plan, due)
    return found


def _has_quarantine(deaths: Sequence[ProcessDeath], failures: FailuresConfig) -> bool:
    return failures.max_process_deaths is not None and len(deaths) >= failures.max_process_deaths


def _is_given_up(record: Record | None, deaths: Sequence[ProcessDeath], failures: FailuresConfig) -> bool:
    """Whether the task has failed, and no session tries it again."""
    if record is None or record.status != "failed":
        return False
    if _is_quarantine(record):
        is_same = (record.error or "").startswith(_quarantine_words(len(deaths)))
        return is_same and _has_quarantine(deaths, failures)
    return failures.retries is not None and record.attempt > failures.retries


def _is_quarantine(record: Record) -> bool:
    return (record.error or "").startswith(QUARANTINED)


def _quarantine_words(num_deaths: int) -> str:
    return f"{QUARANTINED}{num_deaths} processes died"


def _sort_in(number: int, deaths: Sequence[ProcessDeath], failures: FailuresConfig, found: PendingTasks) -> None:
    if not deaths:
        return
    most = failures.max_process_deaths
    (found.last_chances if most is not None and len(deaths) == most - 1 else found.suspects).append(number)


def _quarantine(plan: Plan, due: Sequence[tuple[Task, Sequence[ProcessDeath], int]]) -> None:
    """Write a failed record for each task, with its deaths and the number of its attempt."""
    if not due:
        return
    manifest = plan.directory.writer.manifest()
    for task, deaths, attempt in due:
        manifest.append(_record(plan, task, deaths, attempt))
    plan.directory.reader.refresh_records()


def _record(plan: Plan, task: Task, deaths: Sequence[ProcessDeath], attempt: int) -> Record:
    last = deaths[-1]
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(last.begun_s))
    error = (
        f"{_quarantine_words(len(deaths))} while they worked on this task (the last one on {last.host}, "
        f"pid {last.pid}, which began it at {when}). failures.max_process_deaths={len(deaths) + 1} tries it once more"
    )
    return Record(
        key=task.key,
        sample_key=task.sample_key,
        status="failed",
        file=None,
        error=error,
        prompt=None,
        seed=task.seed,
        variant=task.image_index,
        steps=task.point.steps,
        guidance=task.point.guidance,
        height=None,
        width=None,
        covered=None,
        rank=last.rank,
        device=last.host,
        batch_size=None,
        seconds={},
        attempt=attempt,
        inputs=plan.dataset.inputs(task.index),
    )
