"""The files around the code agree with it and with each other: changelog, Dockerfile, workflows, templates, pins."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path, PurePath
from typing import Any

import pytest
import yaml

import fluxexp
from tools.release import require_changelog

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_changelog_has_the_version_and_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    require_changelog(fluxexp.__version__, text)
    releases = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert releases
    for heading in releases:
        assert re.fullmatch(r"\[(Unreleased|\d+\.\d+\.\d+)\]( - (\d{4}-\d\d-\d\d|unreleased))?", heading), heading
    assert set(re.findall(r"^### (.*)$", text, flags=re.MULTILINE)) <= SECTIONS


def test_a_release_needs_its_version_in_the_changelog() -> None:
    require_changelog("2.0.0", "# Changelog\n\n## [Unreleased]\n\n## [2.0.0] - 2030-01-01\n")
    with pytest.raises(SystemExit, match=r"is 2\.0\.0, and the package says 2\.1\.0"):
        require_changelog("2.1.0", "## [2.0.0] - 2030-01-01\n\n## [2.1.0] - 2029-01-01\n")


def copied_files() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copies = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    return [name.removeprefix("./") for names in copies for name in names]


def test_the_docker_image_gets_all_files_that_it_copies_and_no_others() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[0] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied_files())
    assert all((ROOT / name).exists() for name in copied_files())


@pytest.mark.slow
def test_the_package_is_built_from_what_the_docker_image_has(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in copied_files()), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=100)
    assert len(list(tmp_path.glob(f"fluxexp-{fluxexp.__version__}-*.whl"))) == 1


def test_the_workflow_runs_the_checks_with_every_supported_python() -> None:
    job = loaded(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]
    assert {"run": ".ci/run"} in job["steps"]
    prefix = "Programming Language :: Python :: "
    versions = [name.removeprefix(prefix) for name in PYPROJECT["project"]["classifiers"] if name.startswith(prefix)]
    assert job["strategy"]["matrix"]["python"] == [version for version in versions if "." in version]
    assert PYPROJECT["project"]["requires-python"] == f">={min(v for v in versions if '.' in v)}"


@pytest.mark.parametrize("path", sorted(GITHUB.glob("workflows/*.yml")), ids=lambda path: path.stem)
def test_workflows_run_targets_that_exist_and_write_nothing(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == ".ci/run" or (program == "make" and set(arguments) <= set(targets)), command


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_have_what_github_requires(name: str) -> None:
    form = loaded(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    fields = [element for element in form["body"] if element["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_every_requirement_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalized(line.split("==")[0]) for line in pins if line and not line.startswith("#")}
    extras = PYPROJECT["project"]["optional-dependencies"]
    needed = [*PYPROJECT["project"]["dependencies"], *extras["dev"], *extras["docs"], *extras["release"]]
    names = {normalized(re.split(r"[\[<>=~ ]", requirement)[0]) for requirement in needed} - {"fluxexp"}
    assert names <= pinned, f"not in constraints.txt: {sorted(names - pinned)}"


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_editors_find_a_schema_for_every_group() -> None:
    schemas = json.loads((ROOT / ".vscode" / "settings.json").read_text(encoding="utf-8"))["yaml.schemas"]
    assert all((ROOT / path).is_file() for path in schemas)
    patterns = [one for each in schemas.values() for one in ([each] if isinstance(each, str) else each)]
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")]
    unmatched = {file for file in files if not any(PurePath(file).match(pattern) for pattern in patterns)}
    assert unmatched <= {"conf/optimization/step_cache/none.yaml", "conf/debug/none.yaml", "conf/debug/plan.yaml"}
