from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.data import open_dataset
from fluxexp.packing import pack_counts, pack_numbers, unpack_counts, unpack_numbers
from fluxexp.plan import Plan
from fluxexp.records import Task
from tests.storage.test_manifest import record

Compose = Callable[..., RunConfig]


def plan_of(config: RunConfig) -> Plan:
    return Plan.of(config, open_dataset(config.dataset), Address.of("outputs"))


@given(st.sets(st.integers(0, 999)))
def test_numbers_survive_the_store(numbers: set[int]) -> None:
    assert list(unpack_numbers(pack_numbers(sorted(numbers), 1000))) == sorted(numbers)


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_counts_survive_the_store(counts: list[int]) -> None:
    assert list(unpack_counts(pack_counts(counts))) == counts


def test_a_million_numbers_are_a_small_message() -> None:
    assert len(pack_numbers(list(range(1_000_000)), 1_000_000)) < 5_000


def test_tasks_are_numbered_sample_by_sample(compose: Compose) -> None:
    plan = plan_of(compose("sampling.images_per_sample=3", "dataset.limit=2"))
    tasks = list(plan.tasks(range(plan.num_tasks)))
    assert [(task.index, task.image_index) for task in tasks] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert len({task.key for task in tasks}) == len({task.seed for task in tasks}) == 6


def test_points_of_a_sweep_share_noise_and_not_keys(compose: Compose) -> None:
    few, many = plan_of(compose("sampling.steps=4")), plan_of(compose("sampling.steps=8"))
    assert few.task(3).seed == many.task(3).seed
    assert few.task(3).sample_key == many.task(3).sample_key
    assert few.task(3).key != many.task(3).key
    assert few.directory != many.directory


def test_a_task_is_the_same_in_a_wider_run(compose: Compose) -> None:
    narrow, wide = plan_of(compose("dataset.limit=2")), plan_of(compose("sampling.images_per_sample=2"))
    assert {task.key for task in narrow.tasks(range(2))} < {task.key for task in wide.tasks(range(8))}
    assert narrow.directory == wide.directory


def test_pending_is_what_has_no_image(compose: Compose, tmp_path: Path) -> None:
    config = compose("dataset.limit=4")
    plan = Plan.of(config, open_dataset(config.dataset), Address.of(tmp_path))
    assert list(plan.pending()) == [0, 1, 2, 3]
    keys = [plan.task_key(number) for number in range(4)]
    writer = plan.directory.writer
    manifest = writer.manifest()
    plan.directory.store.put(f"images/{keys[1]}.png", b"image")
    manifest.append(record(key=keys[1], file=f"images/{keys[1]}.png"))
    manifest.append(record(key=keys[2], status="failed", file=None, attempt=3))
    plan.directory.reader.refresh_records()
    assert list(plan.pending()) == [0, 2, 3]
    assert dict(plan.results().attempts(plan.pending())) == {2: 3}


def test_the_digest_tells_datasets_apart(compose: Compose) -> None:
    digests = {plan_of(compose(o)).digest() for o in ("dataset.limit=4", "dataset.limit=5", "dataset.seed=1")}
    assert len(digests) == 3


def test_the_directory_goes_where_the_config_says(compose: Compose) -> None:
    plan = plan_of(compose("name=mine", "output.dir=elsewhere"))
    assert str(plan.directory.address) == f"elsewhere/mine-{plan.fingerprint}"
    same = replace(plan.config, output=replace(plan.config.output, dir=None))
    assert str(plan_of(same).directory.address) == f"outputs/mine-{plan.fingerprint}"


def test_another_caption_is_another_task_on_the_same_noise(compose: Compose, tmp_path: Path) -> None:
    def task(prompt: str) -> Task:
        (tmp_path / "t.csv").write_text(f"key,prompt,image,mask\nk,{prompt},a.png,m.png\n")
        return plan_of(compose("dataset=table", f"dataset.path={tmp_path / 't.csv'}")).task(0)

    cat, dog = task("a cat"), task("a dog")
    assert cat.sample_key == dog.sample_key == "k"
    assert cat.key != dog.key
    assert cat.seed == dog.seed
    assert task("a cat").key == cat.key
