"""Runs with very many tasks, records, failures and points: what rank 0 keeps, reads and announces."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxexp.address import Address
from fluxexp.config import RunConfig, build
from fluxexp.data import open_dataset
from fluxexp.experiment import run_experiment
from fluxexp.experiment.config_changes import config_changes, with_changes
from fluxexp.experiment.session_messages import SESSION
from fluxexp.experiment.session_plan import agree_on_plan
from fluxexp.experiment.sweep import Sweep
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.topology import Topology
from fluxexp.plan import Plan
from fluxexp.storage.run_directory import RunDirectory
from tests.storage.test_manifest import record

Compose = Callable[..., RunConfig]
SMALL = (
    "model=fake",
    "dataset.height=32",
    "dataset.width=32",
    "tracking=disabled",
    "metrics=none",
    "report.html=false",
)
MIB = 1 << 20


def plan_of(config: RunConfig, root: Path) -> Plan:
    return Plan.of(config, open_dataset(config.dataset), Address.of(root))


def failed_line(plan: Plan, number: int, attempt: int = 1) -> bytes:
    key = plan.task_key(number)
    return (
        record(key=key, sample_key="s", status="failed", file=None, error="broken", attempt=attempt).to_json().encode()
    )


def ranks(number: int) -> list[Topology]:
    return [
        Topology(rank, number, torch.device("cpu"), part) for rank, part in enumerate(LocalCoordinator.group(number))
    ]


def value_bytes(coordinator: Any) -> int:
    return max(map(len, coordinator._memory.values.values()))


@pytest.mark.slow
def test_142_000_failures_resume_on_two_ranks(compose: Compose, tmp_path: Path) -> None:
    plan = plan_of(compose(*SMALL, "dataset.length=200000"), tmp_path)
    with plan.directory.claimed():
        plan.directory.writer.prepare(plan.fingerprint_payload, overwrite=False)
    lines = b"\n".join(failed_line(plan, number, attempt=1 + number % 7) for number in range(0, 142_000)) + b"\n"
    plan.directory.store.append_record("manifest/x.jsonl", lines[:-1])
    main, other = ranks(2)
    with ExitStack() as claim:
        planned = agree_on_plan(main, [plan], lambda _: plan, claim).runs[0]
        followed = agree_on_plan(other, None, lambda config: plan_of(config, tmp_path), claim).runs[0]
    assert value_bytes(main.coordinator) < MIB, "the coordinator once took at most 8 MiB"
    assert len(planned.attempts) == 142_000
    assert dict(followed.attempts) == dict(planned.attempts)
    assert (followed.attempts[13], followed.attempts.get(150_000, 0)) == (7, 0)
    assert followed.pending == planned.pending == array("i", range(200_000))


@pytest.mark.slow
def test_5_000_points_are_a_small_message(compose: Compose, tmp_path: Path) -> None:
    config = compose(*SMALL, "dataset.limit=2")
    dataset = open_dataset(config.dataset)
    plans = [
        Plan.of(replace(config, sampling=replace(config.sampling, seed=seed)), dataset, Address.of(tmp_path))
        for seed in range(5_000)
    ]
    main, _ = ranks(2)
    sweep = Sweep.of("fill", [plan.directory.name for plan in plans], Address.of(tmp_path), [], retry_s=0)
    with ExitStack() as claim:
        directories = {plan.directory.address for plan in plans}
        assert len(directories) == 5_000
        for plan in plans:  # claims hold a file descriptor each, which this test does not measure
            plan.directory.local_directory().mkdir()
            object.__setattr__(plan.directory, "claimed", lambda: ExitStack())
        agree_on_plan(main, plans, lambda _: plans[0], claim, sweep=sweep.directory)
    assert value_bytes(main.coordinator) < 4 * MIB
    session = SESSION.wait(main.coordinator).session
    assert session is not None
    assert [build(RunConfig, with_changes(session.config, run.config_changes)) for run in session.runs[::499]] == [
        plan.config for plan in plans[::499]
    ]


def test_config_changes_are_what_differs(compose: Compose) -> None:
    base = asdict(compose(*SMALL))
    other = asdict(
        compose("model=fake", "dataset=table", "dataset.path=x.csv", "sampling.steps=7", "tracking=disabled")
    )
    changes = config_changes(base, other)
    assert changes["sampling.steps"] == 7
    assert "model" not in changes
    before = json.dumps(base)
    assert with_changes(base, changes) == other
    assert json.dumps(base) == before
    assert config_changes(base, base) == {}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


def images_of(directory: RunDirectory) -> dict[str, bytes]:
    folder = directory.local_directory() / "images"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


damages = st.one_of(
    st.tuples(st.just("append"), st.binary(max_size=200)),
    st.tuples(
        st.just("flip"), st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=8)
    ),
    st.tuples(st.just("cut"), st.integers(1, 2_000)),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages)
def test_damage_of_the_manifest_never_loses_or_doubles_an_image(
    compose: Compose, finished_run: Path, damage: tuple[str, Any]
) -> None:
    config = compose(*SMALL, "dataset.limit=3")
    root = Address.of(finished_run)
    directory = RunDirectory(run_experiment(config, root, []).address)
    images = images_of(directory)
    assert len(images) == 3
    stream = sorted((directory.local_directory() / "manifest").iterdir())[0]
    content = bytearray(stream.read_bytes())
    kind, what = damage
    if kind == "append":
        content += what
    elif kind == "cut":
        del content[-what:]
    else:
        for place, mask in what if content else ():
            content[place % len(content)] ^= mask
    stream.write_bytes(content)
    outcome = run_experiment(config, root, [])
    assert (outcome.status, outcome.summary["num_ok"], outcome.summary["num_failed"]) == ("complete", 3, 0)
    assert images_of(directory) == images


def test_a_truncated_replaced_or_removed_image_is_made_again(compose: Compose, tmp_path: Path) -> None:
    config = compose(*SMALL, "dataset.limit=4")
    outcome = run_experiment(config, Address.of(tmp_path), [])
    directory = RunDirectory(outcome.address)
    before = images_of(directory)
    first, second, third, _ = sorted((directory.local_directory() / "images").iterdir())
    os.truncate(first, 100)
    second.write_bytes(b"")
    third.unlink()
    fresh = RunDirectory(outcome.address)
    assert len(plan_of(config, tmp_path).pending()) == 3
    assert len(fresh.reader.outcomes()) == 1
    assert run_experiment(config, Address.of(tmp_path), []).summary["num_ok"] == 4
    assert images_of(directory) == before
    records = RunDirectory(outcome.address).reader.outcomes()
    assert sorted(found.attempt for found in records.values()) == [1, 2, 2, 2]


def test_a_record_without_a_size_counts_as_before(compose: Compose, tmp_path: Path) -> None:
    config = compose(*SMALL, "dataset.limit=2")
    directory = RunDirectory(run_experiment(config, Address.of(tmp_path), []).address)
    (stream,) = (directory.local_directory() / "manifest").iterdir()
    lines = [json.loads(line) for line in stream.read_text().splitlines()]
    stream.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "bytes"}) + "\n" for line in lines))
    for image in (directory.local_directory() / "images").iterdir():
        image.write_bytes(b"other")
    assert len(plan_of(config, tmp_path).pending()) == 0


def test_damage_is_reported_once_and_costs_only_its_task(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(*SMALL, "dataset.limit=3")
    directory = RunDirectory(run_experiment(config, Address.of(tmp_path), []).address)
    (stream,) = (directory.local_directory() / "manifest").iterdir()
    lines = stream.read_bytes().splitlines(keepends=True)
    later = json.dumps({**json.loads(lines[2]), "version": 2}).encode() + b"\n"
    stream.write_bytes(lines[0] + b'\xff\x00{"key":\n' + lines[1] + later)
    capsys.readouterr()
    assert run_experiment(config, Address.of(tmp_path), []).summary["num_ok"] == 3
    printed = "".join(capsys.readouterr())
    assert printed.count("2 damaged lines of the manifest left out") == 1
    assert f"manifest/{stream.name}, line 2:" in printed
