from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from fluxexp.config.build import build, nearest
from fluxexp.config.rules import Above, Matches, MultipleOf, Range
from fluxexp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cat:
    kind: Literal["cat"]
    lives: Annotated[int, Range(1, 9)]


@dataclass(frozen=True, kw_only=True)
class Dog:
    kind: Literal["dog"]
    tricks: list[str]


@dataclass(frozen=True, kw_only=True)
class Home:
    name: Annotated[str, Matches("[a-z]+", "small letters")]
    weight: Annotated[float, Above(0)] | None
    size: Annotated[int, Range(16), MultipleOf(16)]
    open: bool
    doors: list[Annotated[int, Range(1)]] | Literal["all", "none"]
    pet: Cat | Dog


GOOD = {"name": "den", "weight": 2, "size": 32, "open": True, "doors": [1, 2], "pet": {"kind": "cat", "lives": 9}}


def problems_of(**changes: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        build(Home, GOOD | changes)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_builds_nested_values_and_widens_integers_to_floats() -> None:
    home = build(Home, GOOD)
    assert home == Home(name="den", weight=2.0, size=32, open=True, doors=[1, 2], pet=Cat(kind="cat", lives=9))
    assert isinstance(home.weight, float)


def test_a_tag_chooses_the_dataclass_of_a_union() -> None:
    home = build(Home, GOOD | {"pet": {"kind": "dog", "tricks": ["sit"]}})
    assert home.pet == Dog(kind="dog", tricks=["sit"])


def test_a_list_or_a_word() -> None:
    assert build(Home, GOOD | {"doors": "all"}).doors == "all"
    assert build(Home, GOOD | {"doors": []}).doors == []


def test_none_only_where_allowed() -> None:
    assert build(Home, GOOD | {"weight": None}).weight is None
    assert "true or false" in problems_of(open=None)["open"]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"size": 40}, "size", "multiple of 16 (nearest: 32 or 48)"),
        ({"size": 0}, "size", "at least 16"),
        ({"size": 32.5}, "size", "a whole number"),
        ({"size": True}, "size", "a whole number"),
        ({"weight": 0}, "weight", "above 0"),
        ({"weight": float("nan")}, "weight", "above 0"),
        ({"weight": "heavy"}, "weight", "a number"),
        ({"name": "Den"}, "name", "small letters"),
        ({"pet": {"kind": "cat", "lives": 10}}, "pet.lives", "between 1 and 9"),
        ({"pet": {"kind": "cot", "lives": 1}}, "pet.kind", "did you mean 'cat'?"),
        ({"pet": {"kind": "dog", "tricks": "sit"}}, "pet.tricks", "write pet.tricks=[sit]"),
        ({"pet": {"kind": "dog", "tricks": [[]]}}, "pet.tricks[0]", "text"),
        ({"pet": {"kind": "cat"}}, "pet.lives", "is missing"),
        ({"pet": {"kind": ["cat"]}}, "pet.kind", "allowed: cat, dog"),
        ({"pet": {"kind": {"cat": 1}}}, "pet.kind", "allowed: cat, dog"),
        ({"weight": 10**400}, "weight", "that a float can hold"),
        ({"pet": 3}, "pet.kind", "allowed: cat, dog"),
        ({"doors": "any"}, "doors", "must be a list or all or none"),
        ({"doors": None}, "doors", "must be a list or all or none"),
        ({"doors": [1, 0]}, "doors[1]", "at least 1"),
        ({"colour": 1}, "colour", "keys here: doors, name, open, pet, size, weight"),
        ({"wieght": 1}, "wieght", "did you mean 'weight'?"),  # codespell:ignore
    ],
)
def test_each_error_names_what_is_allowed(changes: dict[str, object], key: str, words: str) -> None:
    assert words in problems_of(**changes)[key]


def test_all_problems_are_reported_at_once() -> None:
    assert set(problems_of(size=1, open="yes", pet={"kind": "cat", "lives": 0, "age": 3})) == {
        "size",
        "open",
        "pet.lives",
        "pet.age",
    }


def test_nearest_returns_none_if_nothing_is_similar() -> None:
    assert nearest("stpes", ["steps", "seed"]) == "steps"
    assert nearest("zebra", ["steps", "seed"]) is None
