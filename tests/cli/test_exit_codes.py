"""One exit code for each end of a run."""

from __future__ import annotations

from typing import Any

import pytest

from fluxexp.address import Address
from fluxexp.cli.exit_codes import ExitCode, exit_code_of, worst
from fluxexp.errors import ConfigError, FluxexpError
from fluxexp.experiment import Outcome


@pytest.mark.parametrize(
    ("summary", "code"),
    [
        ({"status": "complete"}, 0),
        ({"status": "incomplete"}, 1),
        ({"status": "complete_with_failures"}, 3),
        ({"status": "incomplete", "interrupted": False, "stopped": "21 of 22 tasks failed"}, 4),
        ({"status": "incomplete", "interrupted": True, "stopped": None}, 75),
        ({"status": "complete", "interrupted": True, "stopped": None}, 75),
    ],
)
def test_the_exit_code_says_how_the_run_ended(summary: dict[str, Any], code: int) -> None:
    assert exit_code_of(Outcome.of(Address.of("outputs/run"), summary)) == code


@pytest.mark.parametrize(
    ("codes", "code"),
    [([0], 0), ([0, 3, 0], 3), ([3, 1], 1), ([2, 1, 0], 1), ([3, 2], 2), ([1, 4, 3], 4), ([4, 75, 1], 75)],
)
def test_a_sweep_ends_with_the_code_of_its_worst_point(codes: list[int], code: int) -> None:
    """Code 3 says that everything is complete, so it must not hide a point that is not."""
    assert worst(codes) == code


def test_errors_have_the_codes_of_the_table() -> None:
    assert ExitCode.CONFIG_ERROR == ConfigError.exit_code == 2
    assert ExitCode.INCOMPLETE == FluxexpError.exit_code == 1
    assert exit_code_of(Outcome.failed(Address.of("outputs/run"), "no such file")) == 2
