from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fluxexp.imports import large_imports


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_rests_during_imports_alone_and_passes_over_what_they_made() -> None:
    gc.unfreeze()
    with large_imports("not.imported"):
        assert not gc.isenabled()
        made = [[number] for number in range(100)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(made)


def test_a_collector_that_was_off_stays_off_and_an_error_passes_through() -> None:
    gc.disable()
    with pytest.raises(ImportError), large_imports("not.imported"):
        raise ImportError("no such library")
    assert not gc.isenabled()


def test_an_error_wakes_the_collector_up() -> None:
    with pytest.raises(ImportError), large_imports("not.imported"):
        raise ImportError("no such library")
    assert gc.isenabled()


def test_what_is_alive_at_a_second_import_can_still_be_freed() -> None:
    gc.unfreeze()
    with large_imports("gc"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0
