"""What is installed from a wheel, as opposed to a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_holds_configs_and_models_and_works_without_the_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("fluxexp-*.whl")
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    inside = {
        path.relative_to(unpacked / "fluxexp" / "conf") for path in (unpacked / "fluxexp" / "conf").rglob("*.yaml")
    }
    assert inside == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    shipped, installed = ROOT / "src" / "fluxexp", unpacked / "fluxexp"
    files = [
        path.relative_to(shipped)
        for part in ("embedded", "report/assets", "report/templates")
        for path in (shipped / part).rglob("*")
        if path.is_file()
    ]
    assert len(files) > 30
    for file in files:
        assert (installed / file).read_bytes() == (shipped / file).read_bytes()
    program = f"import sys; sys.path.insert(0, {str(unpacked)!r}); import fluxexp.cli as c; print(c.__file__); c.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "debug=plan"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert str(unpacked) in done.stdout
    assert "16, of which 0 are done" in done.stdout
