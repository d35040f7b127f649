from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.data import open_dataset
from fluxexp.experiment.pool import Pool, ranks_to_use
from fluxexp.experiment.task_kinds import TaskKinds
from fluxexp.plan import Plan
from fluxexp.worker import WorkOrder
from tests import lora_files

Compose = Callable[..., RunConfig]


def pool_of(configs: list[RunConfig], num_ranks: int, pending: list[list[int]] | None = None) -> Pool:
    plans = [Plan.of(config, open_dataset(config.dataset), Address.of("outputs")) for config in configs]
    orders = [
        WorkOrder(
            number=number,
            config=plan.config,
            dataset=plan.dataset,
            directory=plan.directory,
            attempts={},
            is_alone=len(plans) == 1,
        )
        for number, plan in enumerate(plans)
    ]
    return Pool.of(orders, plans, pending or [list(range(plan.num_tasks)) for plan in plans], num_ranks, is_cpu=True)


def keys_of(pool: Pool, rank: int) -> list[tuple[int, int]]:
    """(steps, sample) of a rank's shard, in its order."""
    made = [pool.assignment(rank, position) for position in range(len(pool.shards[rank]))]
    return [(a.task.point.steps, a.task.index) for a in made]


def test_every_pending_task_of_every_run_is_in_one_shard(compose: Compose) -> None:
    configs = [compose("dataset.limit=5", f"sampling.guidance={g}", "sampling.images_per_sample=2") for g in (1, 2, 3)]
    pending = [list(range(10)), [0, 9], [3]]
    pool = pool_of(configs, 3, pending)
    made = Counter(pool.assignment(rank, at).task.key for rank in range(3) for at in range(len(pool.shards[rank])))
    assert len(made) == 13
    assert set(made.values()) == {1}
    assert [len(shard) for shard in pool.shards] == [5, 4, 4]


def blocks(pool: Pool, rank: int = 0) -> list[tuple[int, int]]:
    """(steps, number of tasks) of each stretch of a shard with equal steps."""
    return [(steps, len(list(group))) for steps, group in groupby(steps for steps, _ in keys_of(pool, rank))]


def test_tasks_of_a_sample_stay_together_and_the_last_batch_is_cheap(compose: Compose) -> None:
    configs = [compose("dataset.limit=4", f"sampling.steps={steps}") for steps in (2, 8)]
    pool = pool_of(configs, 2)
    assert keys_of(pool, 0) == [(8, 0), (8, 1), (2, 0), (2, 1)]
    assert keys_of(pool, 1) == [(8, 2), (8, 3), (2, 2), (2, 3)]
    assert pool.costs[0] == sorted(pool.costs[0], reverse=True)
    assert pool.costs[0][0] == 4 * pool.costs[0][2]


def test_batches_of_different_points_alternate(compose: Compose) -> None:
    """Ten images of 128 x 128 are a batch of the tiny model on a CPU, whose tokenizer reads 32 tokens."""
    pool = pool_of([compose("dataset.length=40", f"sampling.steps={steps}") for steps in (2, 8)], 1)
    assert blocks(pool) == [(2, 10), (8, 20), (2, 20), (8, 20), (2, 10)]
    samples = [{sample for _, sample in keys_of(pool, 0)[start : start + 20]} for start in range(0, 80, 20)]
    assert samples == [set(range(start, start + 10)) for start in range(0, 40, 10)]


def test_points_that_share_batches_take_turns_as_one(compose: Compose) -> None:
    settings = [("dataset.limit=10", f"sampling.steps={s}", f"sampling.guidance={g}") for s in (2, 8) for g in (1, 9)]
    pool = pool_of([compose(*changes) for changes in settings], 1)
    assert blocks(pool) == [(2, 10), (8, 20), (2, 10)]


def test_points_that_use_the_controlnet_differently_share_batches(compose: Compose) -> None:
    """Unless it is computed at other steps: each image would have the time of the others."""
    union = ("+experiment=controlnet", "model.controlnet.layout=union", "dataset.limit=2")

    def kinds(*scales_modes_ends: tuple[float, int, float]) -> int:
        changes = [
            (f"sampling.controlnet_scale={s}", f"sampling.control_mode={m}", f"sampling.control_guidance_end={e}")
            for s, m, e in scales_modes_ends
        ]
        plans = [
            Plan.of(config, open_dataset(config.dataset), Address.of("outputs"))
            for config in (compose(*union, *change) for change in changes)
        ]
        of_task = TaskKinds(plans, is_cpu=True)
        return len({of_task(run, 0).name for run in range(len(plans))})

    assert kinds((0.5, 1, 0.8), (1.0, 2, 0.8)) == 1
    assert kinds((0.0, 1, 0.8), (0.0, 1, 0.5)) == 1
    assert kinds((0.0, 1, 0.8), (1.0, 1, 0.8), (1.0, 1, 0.5)) == 3


def test_a_fixed_batch_size_is_that_of_the_order(compose: Compose) -> None:
    pool = pool_of([compose("dataset.limit=6", f"sampling.steps={s}", "sampling.batch_size=3") for s in (2, 8)], 1)
    assert blocks(pool) == [(2, 3), (8, 6), (2, 3)]


def test_windows_bound_the_samples_that_are_kept(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.experiment.interleaving.WINDOW", 2)
    pool = pool_of([compose("dataset.limit=4", f"sampling.steps={steps}") for steps in (2, 8)], 1)
    assert keys_of(pool, 0) == [(2, 0), (2, 1), (8, 0), (8, 1), (8, 2), (8, 3), (2, 2), (2, 3)]


def test_a_lora_is_changed_once_per_window(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next window begins with the LoRA of the end of the last one. Points of one LoRA still alternate."""
    monkeypatch.setattr("fluxexp.experiment.interleaving.WINDOW", 2)
    path = lora_files.peft_with(tmp_path / "a.safetensors")
    points = [(f"lora.path={path}", f"lora.scale={x}", f"sampling.steps={s}") for x in (0.5, 1) for s in (2, 8)]
    pool = pool_of([compose("dataset.limit=4", *point) for point in points], 1)
    scales = [pool.assignment(0, place).task.point.lora[0].scale for place in range(16)]
    assert scales == [0.5] * 4 + [1.0] * 8 + [0.5] * 4
    assert {steps for steps, _ in keys_of(pool, 0)[:4]} == {2, 8}


def test_a_window_has_full_batches_if_possible(compose: Compose) -> None:
    pool = pool_of([compose("dataset.length=64", f"sampling.steps={s}", "sampling.batch_size=12") for s in (2, 8)], 1)
    numbers = [number for _, number in blocks(pool)]
    assert numbers == [12, 24, 24, 24, 24, 12 + 4, 4], "windows of 24 samples, then 16 are left"


def test_only_images_of_one_size_share_a_batch(compose: Compose, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("prompt,size\n" + "".join(f"{n},{size}\n" for n in range(4) for size in ("64x128", "128x64")))
    common = ("+experiment=text_to_image", "dataset=prompts", f"dataset.path={table}", "sampling.batch_size=4")
    pool = pool_of([compose(*common, f"sampling.steps={steps}") for steps in (2, 8)], 1)
    order = keys_of(pool, 0)
    batches = [order[start : start + 4] for start in range(0, 16, 4)]
    assert [batch[0][0] for batch in batches] == [2, 8, 8, 2]
    assert all(len({sample % 2 for _, sample in batch}) == 1 for batch in batches)


def test_a_linear_change_of_speed_costs_all_points_the_same(compose: Compose) -> None:
    """The device slows down to a third of its speed. Points by batches in turn see the same mean speed."""
    steps_of_points = (1, 2, 4, 8, 16)
    pool = pool_of([compose("dataset.length=60", f"sampling.steps={steps}") for steps in steps_of_points], 1)
    now, means = 0.0, dict.fromkeys(steps_of_points, 0.0)
    whole = sum(pool.costs[0])
    for (steps, _), cost in zip(keys_of(pool, 0), pool.costs[0], strict=True):
        now += cost / 2
        means[steps] += (1 + 2 * now / whole) / 60  # slowdown in the middle of the task
        now += cost / 2
    assert list(means.values()) == pytest.approx([2.0] * 5, rel=0.05)


def test_large_images_cost_more_and_come_first(compose: Compose, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("prompt,size\na,64\nb,256\nc,128x64\n")
    config = compose("+experiment=text_to_image", "dataset=prompts", f"dataset.path={table}")
    pool = pool_of([config], 1)
    assert [index for _, index in keys_of(pool, 0)] == [1, 2, 0]


@pytest.mark.parametrize(
    ("cheap", "dear"),
    [
        ("sampling.steps=4", "sampling.steps=5"),
        ("sampling.strength=0.5", "sampling.strength=1"),
        ("sampling.height=64", "sampling.height=128"),
        ("scheduler=flow_match_euler", "scheduler=flow_match_heun"),
        ("sampling.max_sequence_length=16", "sampling.max_sequence_length=32"),
    ],
)
def test_settings_that_raise_the_cost_of_a_task(compose: Compose, cheap: str, dear: str) -> None:
    first, second = (pool_of([compose("dataset.limit=1", change)], 1).costs[0][0] for change in (cheap, dear))
    assert first < second


@pytest.mark.parametrize(
    ("mode", "num_tasks", "world_size", "expected"),
    [
        ("auto", 1, 8, 1),
        ("auto", 5, 8, 1),
        ("auto", 6, 8, 2),
        ("auto", 1000, 8, 8),
        ("auto", 0, 8, 1),
        ("data", 1, 8, 8),
        ("single", 1000, 8, 1),
        ("auto", 1, 1, 1),
    ],
)
def test_auto_uses_one_rank_for_each_full_batch(mode: str, num_tasks: int, world_size: int, expected: int) -> None:
    number, why = ranks_to_use(mode, num_tasks, 5, world_size)  # type: ignore[arg-type]
    assert number == expected
    assert why
