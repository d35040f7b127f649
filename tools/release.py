"""Builds the wheel and the source distribution, and checks both as a user would meet them.

    python -m tools.release              # builds into dist/, checks, installs into a fresh environment, runs
    python -m tools.release --reuse      # the environment takes the libraries of this one: seconds instead of minutes

1. The wheel is built from the source distribution, so that the latter is complete.
2. `twine check` reads the metadata.
3. The version is that of CHANGELOG.md.
4. A fresh environment gets the wheel, with the versions of constraints.txt.
5. In an empty folder, `fluxexp --version` runs, and the embedded model makes two images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
_DIST = ROOT / "dist"
_RUN = ("+experiment=fill", "debug=quick", "tracking.mode=disabled")


def main() -> None:
    """Build and check a release. A failed check ends with its error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reuse", action="store_true", help="take the libraries of this environment")
    reuse = parser.parse_args().reuse
    wheel = build(_DIST)
    _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(_DIST.glob("fluxexp-*"))))
    version = wheel.name.split("-")[1]
    require_changelog(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        python = _install(wheel, Path(folder) / "venv", reuse)
        try_out(python, Path(folder) / "work", version)
    print(f"{wheel.name} and its source distribution are in {_DIST}")


def build(directory: Path) -> Path:
    """Build both distributions into `directory`, which is emptied first. Returns the wheel."""
    shutil.rmtree(directory, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT))
    (wheel,) = directory.glob("fluxexp-*.whl")
    return wheel


def require_changelog(version: str, changelog: str) -> None:
    """Check that the newest version in CHANGELOG.md is `version`.

    Raises:
        SystemExit: it is not.
    """
    headings = re.findall(r"^## \[([^]]+)\]", changelog, flags=re.MULTILINE)
    newest = next((heading for heading in headings if heading != "Unreleased"), None)
    if newest != version:
        sys.exit(
            f"the newest version in CHANGELOG.md is {newest}, and the package says {version}: "
            "change __version__ in src/fluxexp/version.py, or the heading in CHANGELOG.md"
        )


def _install(wheel: Path, environment: Path, reuse: bool) -> Path:
    """Install the wheel into a new environment. Returns its interpreter."""
    _run(sys.executable, "-m", "venv", str(environment))
    python = environment / "bin" / "python"
    if reuse:
        _see_libraries_of_this_environment(python)
    options = ["--no-deps"] if reuse else ["--constraint", str(ROOT / "constraints.txt")]
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, str(wheel))
    return python


def _see_libraries_of_this_environment(python: Path) -> None:
    """Let the environment import what this one has. Its own packages come first: fluxexp is that of the wheel."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    libraries = subprocess.run([sys.executable, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")


def try_out(python: Path, folder: Path, version: str) -> None:
    """Run the installed fluxexp in the empty `folder`, as its command and as a module.

    Raises:
        SystemExit: the version or the number of images is wrong.
        CalledProcessError: a command failed.
    """
    folder.mkdir()
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    program = str(python.with_name("fluxexp"))
    said = subprocess.run(
        [program, "--version"], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout
    if version not in said:
        sys.exit(f"`fluxexp --version` says {said.strip()!r} instead of {version}")
    subprocess.run([program, *_RUN], cwd=folder, env=environment, check=True)
    (summary,) = folder.glob("outputs/*/summary.json")
    images = len(list(summary.parent.glob("images/**/*.png")))
    status = json.loads(summary.read_text(encoding="utf-8"))
    if images != 2 or not (summary.parent / "report.html").is_file():
        sys.exit(f"expected 2 images and a report in {summary.parent}, found {images} images; summary: {status}")
    subprocess.run([str(python), "-m", "fluxexp", "debug=plan"], cwd=folder, env=environment, check=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
