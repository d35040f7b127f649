"""Runs that several tests share."""

from __future__ import annotations

import pytest

from tests.program import TINY, Done, Program


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Seven images that one process makes, one at a time."""
    return Program(tmp_path_factory.mktemp("alone")).run(*TINY, "dataset.limit=7", "sampling.batch_size=1")
