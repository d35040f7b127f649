"""Python values as overrides: what Hydra reads is what was meant."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxexp.api.override_text import as_arguments, as_axes
from fluxexp.cli.compose import check_command
from fluxexp.cli.hydra_app import open_hydra
from fluxexp.cli.location import MAIN_CONFIG, Place, config_directory
from fluxexp.cli.overrides import parse_overrides
from fluxexp.errors import ConfigError


def read_back(value: Any) -> Any:
    """What Hydra's parser makes of an override with `value`."""
    (parsed,) = parse_overrides(as_arguments({"tracking.group": value}))
    return parsed.value()


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
@example('a\\"')
@example("ends with \\")
def test_any_text_stays_as_it_is(text: str) -> None:
    if "${" not in text:  # what is left of its backslashes is OmegaConf's matter: see the next test
        assert str(read_back(text)) == text or getattr(read_back(text), "text", None) == text


def test_a_composed_config_has_the_texts() -> None:
    directory = config_directory()
    with open_hydra(Place(directory, MAIN_CONFIG, None)) as app:
        for text in ("a cat, a dog", 'it\'s "x"', "${name}", "\\\\${b}", "null"):
            assert app.compose(as_arguments({"tracking.group": text})).tracking.group == text
    # Without quotes: the command line knows whether the key holds text.
    argument = as_arguments({"tracking.group": "true", "tracking.project": "1e3"})
    tracking = check_command(directory, MAIN_CONFIG, argument, multirun=False).config.tracking
    assert (tracking.group, tracking.project) == ("true", "1e3")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (4, "4"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (np.float64(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(False), "false"),
        (Path("/a/b c"), '"/a/b c"'),
        (PurePosixPath("photos/summer"), "photos/summer"),
        ("embedded:tiny", '"embedded:tiny"'),
        (["a", "b,c"], '[a,"b,c"]'),
        ((1, None), "[1,null]"),
        ({"a": 1, "b": [2]}, "{a:1,b:[2]}"),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert as_arguments({"key": value}) == [f"key={text}"]


def test_a_text_is_a_command_line_and_a_list_is_one_as_it_is() -> None:
    assert as_arguments("+experiment=fill 'dataset.prompt=\"a cat, a dog\"'") == [
        "+experiment=fill",
        'dataset.prompt="a cat, a dog"',
    ]
    assert as_arguments(["a=1", "~b"]) == ["a=1", "~b"]


def test_axes() -> None:
    assert as_axes({"sampling.steps": range(1, 4), "name": ["a,b", "c"]}) == ["sampling.steps=1,2,3", 'name="a,b",c']


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: as_arguments({"sampling.guidance": float("nan")}), ("sampling.guidance", "finite")),
        (lambda: as_arguments({"dataset.path": object()}), ("dataset.path", "type object")),
        (lambda: as_arguments("a='"), ("overrides", "command line")),
        (lambda: as_arguments([("a", 1)]), ("overrides", "KEY=VALUE")),  # type: ignore[list-item]
        (lambda: as_axes({"sampling.steps": 4, "name": "ab"}), ("sampling.steps", "name", "list of values")),  # type: ignore[dict-item]
        (lambda: as_axes({"sampling.steps": []}), ("sampling.steps", "list of values")),
    ],
)
def test_what_cannot_be_an_override_is_named(make: Any, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert all(name in str(refused.value) for name in names)
