from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fluxexp.imports import large_imports


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_is_off_during_the_import_and_its_objects_are_frozen() -> None:
    gc.unfreeze()
    with large_imports("not.imported"):
        assert not gc.isenabled()
        made = [[number] for number in range(100)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(made)


def test_a_collector_that_was_off_stays_off_after_an_error() -> None:
    gc.disable()
    with pytest.raises(ImportError), large_imports("not.imported"):
        raise ImportError("no such library")
    assert not gc.isenabled()


def test_an_error_turns_the_collector_on_again() -> None:
    with pytest.raises(ImportError), large_imports("not.imported"):
        raise ImportError("no such library")
    assert gc.isenabled()


def test_a_second_import_freezes_no_objects() -> None:
    gc.unfreeze()
    with large_imports("gc"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_only_engine_ray_imports_ray() -> None:
    code = (
        "import sys, fluxexp.cli, fluxexp.experiment.engine, fluxexp.experiment.session, "
        "fluxexp.experiment.engine.foreman, fluxexp.experiment.engine.chunk_worker; "
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_an_address_of_object_storage_imports_obstore() -> None:
    code = (
        "import sys; import fluxexp.cli, fluxexp.experiment, fluxexp.storage.run_directory; "
        "sys.exit('obstore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_datasets_that_need_them_import_large_libraries() -> None:
    code = (
        "import sys, fluxexp.cli, fluxexp.data, fluxexp.data.hub_dataset, fluxexp.data.web_dataset; "
        "sys.exit(bool({'datasets', 'fsspec', 'aiohttp', 'obstore', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
