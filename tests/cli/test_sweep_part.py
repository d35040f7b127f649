from __future__ import annotations

import pytest

from fluxexp.cli.sweep_part import SweepPart, refuse_part
from fluxexp.errors import ConfigError
from tests.program import FAKE, Program


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_parts_are_disjoint_and_together_have_every_point(count: int) -> None:
    groups = [list(range(4)), [], list(range(4, 12))]
    parts = [SweepPart(index, count).of(groups, str) for index in range(count)]
    assert [len(part) for part in parts] == [len(groups)] * count
    found = [item for part in parts for group in part for item in group]
    assert sorted(found) == list(range(12))
    if count <= 3:
        sizes = [sum(map(len, part)) for part in parts]
        assert max(sizes) == min(sizes)


def test_a_short_axis_does_not_give_all_expensive_points_to_one_part() -> None:
    steps = [1, 50] * 4
    parts = [SweepPart(index, 2).of([list(enumerate(steps))], str)[0] for index in range(2)]
    assert [sum(cost for _, cost in part) for part in parts] == [102, 102]


def test_points_that_are_one_run_are_in_one_part() -> None:
    parts = [SweepPart(index, 2).of([["a1", "a2", "b1"], ["b2", "a3"]], lambda item: item[0]) for index in range(2)]
    assert parts == [[["a1", "a2"], ["a3"]], [["b1"], ["b2"]]]


def test_points_with_one_run_count_as_one(program: Program) -> None:
    code, output, errors = program.ended(("--part", "1/2", "-m", *FAKE, "sampling.batch_size=1,2"))
    assert code == 0, errors
    assert "part       1/2: 0 of 2 points" in output


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "0/0", "a/b", "1/2/3"])
def test_what_is_not_a_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--part='.*': is not a part of a sweep"):
        SweepPart.parse(text)


def test_a_run_and_a_search_have_no_parts() -> None:
    part = SweepPart(0, 2)
    refuse_part(part, is_pool=True, is_search=False)
    with pytest.raises(ConfigError, match="needs a sweep"):
        refuse_part(part, is_pool=False, is_search=False)
    with pytest.raises(ConfigError, match="not possible for a search"):
        refuse_part(part, is_pool=True, is_search=True)


def test_the_parts_of_a_sweep_make_its_points_and_the_whole_command_makes_the_rest(program: Program) -> None:
    sweep = ("-m", *FAKE, "dataset.limit=1", "sampling.steps=1,2,3")
    code, output, errors = program.ended(("--part", "0/2", *sweep))
    assert code == 0, errors
    assert "part       0/2: 1 of 3 points" in output
    assert len(program.directories("multirun")) == 1
    assert program.ended(("--part", "3/4", "-m", *FAKE, "sampling.steps=1"))[0] == 0, "a part without points"
    code, output, errors = program.ended(sweep)
    assert code == 0, errors
    assert "points     3, 1 done before" in output
