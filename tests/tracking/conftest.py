import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxexp.config.schema import TrackingConfig

Records = list[dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home directory, without credentials, settings or caches."""
    path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_", "NETRC"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(path))
        yield path


@pytest.fixture(scope="session")
def tracking() -> TrackingConfig:
    return TrackingConfig(
        mode="offline",
        project="fluxexp-tests",
        entity=None,
        group=None,
        tags=["a", "b"],
        every_s=5.0,
        images=10,
        finish_timeout_s=60.0,
    )


@pytest.fixture(scope="session")
def read_run() -> Callable[[Path], Records]:
    """Reads the only offline run under a run directory, record by record, with W&B's own command."""

    def read(run_dir: Path) -> Records:
        (directory,) = (run_dir / "wandb").glob("offline-run-*")
        return [json.loads(line) for line in _inspect("--json", str(directory)).splitlines()]

    return read


@pytest.fixture(scope="session")
def summarize_run() -> Callable[[Path], dict[str, Any]]:
    """State, exit code, summary and config of the only offline run under a run directory."""

    def read(run_dir: Path) -> dict[str, Any]:
        (directory,) = (run_dir / "wandb").glob("offline-run-*")
        summary: dict[str, Any] = json.loads(_inspect("--summary", "--json", str(directory)))
        return summary

    return read


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes child processes import a wandb with this source instead of the real one."""

    def put(source: str) -> None:
        package = tmp_path / "fake" / "wandb"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return put


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "did not happen within 60 s"
            time.sleep(0.02)

    return wait


def _inspect(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
