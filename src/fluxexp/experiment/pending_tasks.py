"""The tasks that a session makes: without those that failed too often, and with those that may end a process apart.

A task that was in work when a process died is a suspect: it is made alone, so that the next death blames only one task.
A suspect that would be quarantined after one more death has its last chance: no other such task is in work anywhere,
because a launcher may end all processes when one dies. After `failures.max_process_deaths` deaths it is quarantined:
rank 0 writes a failed record for it, and no session tries it again, unless the user raises the number.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fluxexp.config.schema import FailuresConfig
from fluxexp.plan import EarlierAttempts, Plan, TaskResults
from fluxexp.records import Record, Task
from fluxexp.storage.manifest_index import Flags
from fluxexp.storage.process_deaths import DeathRegister, Deaths, ProcessDeath

QUARANTINED = "quarantined: "
"""Begin of the error of a quarantined task."""


@dataclass(slots=True)
class PendingTasks:
    """The tasks of one run that a session makes, by number. All numbers are sorted."""

    numbers: array[int]
    """All of them, also `suspects` and `last_chances`."""
    attempts: EarlierAttempts
    """Number of earlier attempts at `numbers`."""
    suspects: list[int] = field(default_factory=list)
    last_chances: list[int] = field(default_factory=list)
    num_given_up: int = 0
    """Tasks that failed, and that this session does not try again."""


def find_pending(plan: Plan, deaths: Deaths) -> PendingTasks:
    """Find the tasks to make from the manifest and from the deaths of processes, and quarantine what is due.

    Rank 0 calls it before the session, and again when it has lost a rank (`rounds.py`).

    Raises:
        StorageError, OSError: the manifest or the register of deaths cannot be written.
    """
    results, failures = plan.results(), plan.config.failures
    pending = results.pending()
    is_given_up = _given_up(results, pending, deaths_of := _by_number(plan, pending, deaths), failures)
    found = PendingTasks(pending, results.attempts(pending))
    due, forgotten = list[tuple[Task, Sequence[ProcessDeath], int]](), _made_since(plan, results, deaths)
    for place, own in deaths_of.items():
        number = pending[place]
        if _is_outdated_quarantine(results, number):  # other content of the sample: a new chance
            forgotten.append(plan.task_key(number))
        elif not is_given_up[place] and _has_quarantine(own, failures):
            due.append((plan.task(number), own, found.attempts.get(number, 0) + 1))
            is_given_up[place] = True
        elif not is_given_up[place]:
            is_last = len(own) + 1 == failures.max_process_deaths
            (found.last_chances if is_last else found.suspects).append(number)
    if is_given_up.any():
        found.num_given_up = int(is_given_up.sum())
        found.numbers = array("i", np.asarray(pending, dtype=np.int32)[~is_given_up].tobytes())
        found.attempts = results.attempts(found.numbers)
    DeathRegister(plan.directory.store).forget(deaths, forgotten)
    _quarantine(plan, due)
    return found


def _by_number(plan: Plan, pending: Sequence[int], deaths: Deaths) -> dict[int, Sequence[ProcessDeath]]:
    """Deaths by index in `pending`."""
    if not deaths:
        return {}
    keys = (plan.task_key(number) for number in pending)
    return {place: deaths[key] for place, key in enumerate(keys) if key in deaths}


def _made_since(plan: Plan, results: TaskResults, deaths: Deaths) -> list[str]:
    """The tasks of `deaths` that have an image."""
    made = plan.directory.reader.made() if deaths else ()
    return [key for key in deaths if (row := results.index.row_of.get(key)) is not None and made[row]]


def _given_up(
    results: TaskResults,
    pending: Sequence[int],
    deaths_of: Mapping[int, Sequence[ProcessDeath]],
    failures: FailuresConfig,
) -> Flags:
    """For each of `pending`, whether the task has failed, and no session tries it again."""
    numbers = np.asarray(pending, dtype=np.int64)
    is_failed = results.is_failed[numbers]
    flags = np.zeros(len(numbers), dtype=np.bool_)
    if not is_failed.any():
        return flags
    rows = results.rows[numbers]
    if failures.retries is not None:
        flags[is_failed] = results.index.column("attempt")[rows[is_failed]] > failures.retries
    for place in np.flatnonzero(is_failed).tolist():
        error = results.index.sparse.errors.get(int(rows[place])) or ""
        if error.startswith(QUARANTINED):
            own = deaths_of.get(place, ())
            flags[place] = error.startswith(_quarantine_words(len(own))) and _has_quarantine(own, failures)
    return flags


def _is_outdated_quarantine(results: TaskResults, number: int) -> bool:
    """Whether the task was quarantined with another image or mask than it has now."""
    row = int(results.rows[number])
    is_quarantined = (results.index.sparse.errors.get(row) or "").startswith(QUARANTINED)
    return row >= 0 and is_quarantined and not results.is_failed[number]


def _has_quarantine(deaths: Sequence[ProcessDeath], failures: FailuresConfig) -> bool:
    return failures.max_process_deaths is not None and len(deaths) >= failures.max_process_deaths


def _quarantine_words(num_deaths: int) -> str:
    return f"{QUARANTINED}{num_deaths} processes died"


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
    return Record.of(
        task, error=error, rank=last.rank, device=last.host, attempt=attempt, inputs=plan.dataset.inputs(task.index)
    )
