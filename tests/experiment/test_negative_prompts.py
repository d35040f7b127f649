"""Negative prompts from config to record: checks, settings of rows, kinds of tasks and costs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig, check
from fluxexp.config.families import FAMILIES
from fluxexp.config.work import denoising_work
from fluxexp.data import open_dataset
from fluxexp.errors import ConfigError
from fluxexp.experiment import SweepPoint, run_experiment, run_sweep
from fluxexp.experiment.planner import Planner
from fluxexp.experiment.pool import full_batch
from fluxexp.experiment.task_kinds import TaskKinds
from fluxexp.plan import Plan
from fluxexp.plan.negative_prompts import unused_negative_prompt
from fluxexp.storage.run_directory import RunDirectory

Compose = Callable[..., RunConfig]
Table = Callable[[str], tuple[str, ...]]
DEV = ("model=tiny_dev", "output.paste=false")
FAKE = ("model=fake", "model.seconds_per_step=[0]", "metrics=none", "report=off", "tracking=disabled")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """`table(csv)`: the overrides for this table of prompts."""

    def write(text: str) -> tuple[str, ...]:
        (tmp_path / "prompts.csv").write_text(text)
        return ("dataset=prompts", f"dataset.path={tmp_path / 'prompts.csv'}", "output.paste=false")

    return write


def plan_of(config: RunConfig) -> Plan:
    return Plan.of(config, open_dataset(config.dataset), Address.of("outputs"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*DEV, "sampling.true_cfg_scale=2"), "sampling.true_cfg_scale=2.0: has no effect without a negative prompt"),
        (("sampling.negative_prompt=x",), "flux_fill has no negative prompts"),
        (("sampling.true_cfg_scale=2",), "or a model of another family (flux, flux_img2img, "),
        (("model=fake", "sampling.prompt_2=x"), "sampling.prompt_2='x': would not be used"),
    ],
)
def test_what_would_have_no_effect_is_an_error(compose: Compose, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose(*overrides))
    assert message in str(caught.value)


@pytest.mark.parametrize("negative", ["blurry", "''"])
def test_a_second_pass_with_any_negative_prompt_is_fine(compose: Compose, negative: str) -> None:
    config = compose(*DEV, "sampling.true_cfg_scale=2", f"sampling.negative_prompt={negative}")
    check(config)
    assert Planner(Address.of("outputs"))(config).makes_second_passes


@pytest.mark.parametrize(
    ("model", "more", "text", "message"),
    [
        ("tiny_dev", ("sampling.true_cfg_scale=2",), "prompt,key\na,1\n", "has no effect without a negative prompt"),
        ("tiny_dev", (), "prompt,true_cfg_scale\na,2\n", "has the column 'true_cfg_scale', which has no effect"),
        ("tiny_fill", (), "prompt,negative_prompt\na,b\n", "has the column 'negative_prompt', which would not be used"),
        ("tiny_fill", (), "prompt,true_cfg_scale\na,2\n", "has the column 'true_cfg_scale', which would not be used"),
    ],
)
def test_columns_that_would_have_no_effect_are_an_error(
    compose: Compose,
    table: Table,
    model: str,
    more: tuple[str, ...],
    text: str,
    message: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        Planner(Address.of("outputs"))(compose(f"model={model}", *table(text), *more))
    assert message in str(caught.value)


def test_a_negative_prompt_without_a_second_pass_is_an_error_of_a_run(
    compose: Compose, table: Table, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.true_cfg_scale is 1: there is no second pass"):
        run_experiment(compose(*FAKE, "sampling.negative_prompt=x"), Address.of(tmp_path), [])
    columns = plan_of(compose("model=tiny_dev", *table("prompt,negative_prompt\na,b\n")))
    assert "has the column 'negative_prompt', which has no effect" in str(unused_negative_prompt(columns))
    assert unused_negative_prompt(plan_of(compose("model=tiny_dev"))) is None


def test_a_sweep_may_have_a_point_without_a_second_pass(compose: Compose, tmp_path: Path) -> None:
    usual = (*FAKE, "dataset.limit=2", "sampling.steps=1", "sampling.negative_prompt=x")

    def swept(*changes: str) -> list[str]:
        points = [SweepPoint([change], compose(*usual, change)) for change in changes]
        return [outcome.status for outcome in run_sweep(points, Address.of(tmp_path), points[0].config)]

    assert swept("sampling.true_cfg_scale=1", "sampling.true_cfg_scale=2") == ["complete", "complete"]
    assert swept("sampling.seed=1", "sampling.seed=2") == ["failed", "failed"]


def test_rows_have_scales_and_texts_of_their_own(compose: Compose, table: Table) -> None:
    rows = "prompt,negative_prompt,true_cfg_scale,prompt_2\na,b,3,c\na,,,\na,,0.5,\n"
    plan = plan_of(compose("model=tiny_dev", *table(rows), "sampling.negative_prompt=d"))
    assert [plan.task(number).point.true_cfg_scale for number in range(3)] == [3.0, 1.0, 1.0]
    first, second = plan.dataset.load(0), plan.dataset.load(1)
    assert (first.negative_prompt, first.prompt_2) == ("b", "c")
    assert (second.negative_prompt, second.prompt_2) == (None, None)
    with pytest.raises(Exception, match=r"true_cfg_scale '0\.5' is not a number from 1 to 100"):
        plan.dataset.load(2)
    assert len({plan.task_key(number) for number in range(3)}) == 3
    assert plan.dataset.notes == []


@pytest.mark.parametrize("column", ["true_cfg_scale", "negative_prompt", "prompt_2"])
def test_a_setting_of_a_row_makes_another_task_with_the_same_noise(compose: Compose, table: Table, column: str) -> None:
    tasks = [
        plan_of(compose("model=tiny_dev", *table(f"prompt,{column}\na,{value}\n"))).task(0) for value in ("", "2", "3")
    ]
    assert len({task.key for task in tasks}) == 3
    assert len({task.seed for task in tasks}) == 1


def test_passes_are_part_of_the_kind_and_scales_above_1_are_not(compose: Compose, table: Table) -> None:
    rows = "prompt,negative_prompt,true_cfg_scale\na,b,3\na,c,2\na,,1\na,,\n"
    plan = plan_of(compose("model=tiny_dev", *table(rows)))
    kinds = [TaskKinds([plan], is_cpu=True)(0, number) for number in range(4)]
    assert kinds[0] == kinds[1]
    assert kinds[2] == kinds[3]
    assert kinds[0].name != kinds[2].name
    assert kinds[0].cost == 2 * kinds[2].cost
    assert kinds[0].batch_size == kinds[2].batch_size // 2


def test_a_second_pass_doubles_the_work_and_halves_the_batch(compose: Compose) -> None:
    short = (*DEV, "sampling.max_sequence_length=32")
    usual, guided = compose(*short), compose(*short, "sampling.true_cfg_scale=4", "sampling.negative_prompt=x")
    works = [denoising_work(config.model, plan_of(config).point, 128, 128) for config in (usual, guided)]
    assert works[1] == 2 * works[0]
    assert full_batch(guided, is_cpu=True) == full_batch(usual, is_cpu=True) // 2


def test_a_row_without_a_negative_prompt_fails_alone(compose: Compose, table: Table, tmp_path: Path) -> None:
    rows = table("prompt,negative_prompt,key\na,blurry,1\na,,2\n")
    config = compose(*FAKE, *rows, "sampling.true_cfg_scale=3", "sampling.steps=4")
    outcome = run_experiment(config, Address.of(tmp_path / "runs"), [])
    assert outcome.status == "complete_with_failures"
    reader = RunDirectory(outcome.address).reader
    records = {record.sample_key: record for record in reader.outcomes().values()}
    assert (records["1"].negative_prompt, records["1"].true_cfg_scale) == ("blurry", 3.0)
    assert records["1"].computed_steps == 8
    assert "true_cfg_scale is 3, but there is no negative prompt" in str(records["2"].error)


def test_every_declared_guidance_of_diffusers_is_ours() -> None:
    """The families with `negative_prompt` are those whose pipeline has this argument, except those with Redux."""
    for family in FAMILIES.values():
        if family.pipeline is not None and not family.has_redux:
            parameters = inspect.signature(getattr(diffusers, family.pipeline).__call__).parameters
            assert family.takes_negative_prompt == ("negative_prompt" in parameters), family.name
