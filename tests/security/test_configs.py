"""A config never runs code, and never copies a secret into results. Each attack would leave a marker behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest

from fluxexp.cli.compose import check_command
from fluxexp.cli.location import MAIN_CONFIG, config_directory
from fluxexp.errors import ConfigError

command = import_module("fluxexp.cli.main")  # its package has a function of the same name
HEADER = "# @package _global_\n"
FAST = ("model=fake", "debug=plan")
Attack = Callable[..., str]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What an attack makes. It must not exist at the end."""
    return tmp_path / "marker"


@pytest.fixture
def attack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Attack]:
    """Runs a command in this process. Returns its error, after a check that nothing else happened."""
    handler = signal.getsignal(signal.SIGTERM)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def attack(*arguments: str, left: Sequence[str] = ()) -> str:
        monkeypatch.setattr(sys, "argv", ["fluxexp", *arguments])
        with pytest.raises(SystemExit) as end:
            command.main()
        error = capsys.readouterr().err
        assert not marker.exists(), "code ran"
        assert end.value.code == 2, error
        assert "Traceback" not in error
        assert [path.name for path in work.iterdir()] == list(left), "nothing else is left behind"
        return error

    yield attack
    signal.signal(signal.SIGTERM, handler)


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder


def test_the_marker_shows_code_that_hydra_runs(marker: Path) -> None:
    """A control: without fluxexp's guard, Hydra runs what a config names."""
    from hydra._internal.callbacks import Callbacks
    from omegaconf import OmegaConf

    call = {"_target_": "os.mkdir", "path": str(marker)}
    Callbacks(OmegaConf.create({"hydra": {"callbacks": {"x": call}}}))
    assert marker.is_dir()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("+hydra.callbacks.x={{_target_:os.mkdir,path:{marker}}}", "hydra.callbacks.x"),
        ("++hydra.callbacks={{x:{{_target_:os.mkdir,path:{marker}}}}}", "hydra.callbacks"),
        ("+hydra.launcher.x={{_target_:os.mkdir,path:{marker}}}", "hydra.launcher.x"),
        ("hydra.launcher._target_=os.mkdir", "hydra.launcher._target_"),
        ("+hydra.sweeper.x={{_target_:os.mkdir,path:{marker}}}", "hydra.sweeper.x"),
        ("+hydra.sweeper.params={{x:{{_target_:os.mkdir,path:{marker}}}}}", "hydra.sweeper.params"),
        ("hydra.sweeper._target_=os.mkdir", "hydra.sweeper._target_"),
        ("+hydra.job_logging.handlers={{x:{{'()':os.mkdir,path:{marker}}}}}", "cannot be read as an override"),
        ("+hydra.job_logging.handlers={{x:{{class:logging.FileHandler,filename:{marker}}}}}", "hydra.job_logging"),
        ("+hydra.job_logging.root.level='ext://os.mkdir'", "hydra.job_logging.root"),
        ("+hydra.job.env_set.PYTHONPATH={marker}", "hydra.job.env_set.PYTHONPATH"),
        ("+hydra.job.env_set={{LD_PRELOAD:{marker}}}", "hydra.job.env_set.LD_PRELOAD"),
        ("hydra.job.env_copy=[HOME]", "hydra.job.env_copy"),
        ("hydra.job.name=../../marker", "hydra.job.name"),
    ],
)
@pytest.mark.parametrize("mode", ["run", pytest.param("sweep", marks=pytest.mark.slow)])
def test_an_override_of_hydra_runs_no_code(attack: Attack, marker: Path, template: str, words: str, mode: str) -> None:
    sweep = ("-m", "sampling.steps=2,3") if mode == "sweep" else ()
    assert words in attack(*FAST, template.format(marker=marker), *sweep)


FILES = {
    "callbacks": "callbacks: {{x: {{_target_: os.mkdir, path: {marker}}}}}",
    "pickle": "callbacks: {{x: {{_target_: hydra.experimental.callbacks.PickleJobInfoCallback}}}}",
    "launcher": "launcher: {{x: {{_target_: os.mkdir, path: {marker}}}}}",
    "params": "sweeper: {{params: {{x: {{_target_: os.mkdir, path: {marker}}}}}}}",
    "hidden call": "sweeper: {{params: '${{evil}}'}}",
    "logging factory": "job_logging: {{version: 1, handlers: {{x: {{'()': os.mkdir, path: {marker}}}}}}}",
    "logging class": "hydra_logging: {{version: 1, handlers: {{x: {{class: os.mkdir, path: {marker}}}}}}}",
    "environment": "job: {{env_set: {{PYTHONPATH: {marker}}}}}",
}


SOME = ("callbacks", "logging class", "environment")
"""The default suite writes these to every kind of file; the others take the same ways."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if kind == "experiment" or name in SOME else pytest.mark.slow)
        for kind in ("experiment", "group", "primary")
        for name in FILES
    ],
)
def test_a_config_file_runs_no_code(attack: Attack, tmp_path: Path, marker: Path, name: str, kind: str) -> None:
    """An experiment, a file of a group that packages itself into Hydra's config, and a primary config."""
    folder = tmp_path / "mine"
    evil = f"evil: {{_target_: os.mkdir, path: {marker}}}\n"
    body = FILES[name].format(marker=marker)
    if kind == "experiment":
        written(folder, "experiment/x.yaml", f"{HEADER}hydra:\n  {body}\n{evil}")
        choice = ["+experiment=x"]
    elif kind == "group":
        written(folder, "cost/x.yaml", f"{HEADER}cost: {{usd_per_gpu_hour: 1}}\nhydra:\n  {body}\n{evil}")
        choice = ["cost=x"]
    else:
        written(folder, "x.yaml", f"defaults: [config, _self_]\nhydra:\n  {body}\n{evil}")
        choice = ["--config-name", "x"]
    error = attack("--config-dir", str(folder), *choice, *FAST)
    assert "hydra." in error
    assert "SECURITY.md" in error


def test_a_group_of_hydra_is_read_only_from_hydra(attack: Attack, tmp_path: Path, marker: Path) -> None:
    call = f"x: {{_target_: os.mkdir, path: {marker}}}\n"
    folder = written(tmp_path / "mine", "hydra/callbacks/evil.yaml", call)
    written(folder, "hydra/job_logging/evil.yaml", "version: 1\n")
    written(folder, "cost/packaged.yaml", f"# @package hydra.callbacks\n{call}")
    options = ("--config-dir", str(folder), *FAST)
    assert "hydra/callbacks='evil'" in attack(*options, "hydra/callbacks=evil")
    assert "hydra/job_logging='evil'" in attack(*options, "hydra/job_logging=evil")
    assert "hydra.callbacks.x" in attack(*options, "cost=packaged")
    assert "must be chosen without a plus sign" in attack(*options, "+cost@hydra.callbacks.y=packaged")
    hiding = written(tmp_path / "hiding", "hydra/launcher/basic.yaml", call)
    assert "hydra/launcher" in attack("--config-dir", str(hiding), *FAST, "hydra/launcher=basic")


@pytest.mark.parametrize("how", ["override", "primary config", "--cfg", "completion"])
def test_the_search_path_imports_no_package(
    attack: Attack, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    package = tmp_path / "packages"
    written(package, "evil_configs/__init__.py", f"import os\nos.mkdir({str(marker)!r})\n")
    monkeypatch.syspath_prepend(package)
    folder = written(tmp_path / "mine", "x.yaml", "defaults: [config]\nhydra: {searchpath: ['pkg://evil_configs']}\n")
    override = "hydra.searchpath=['pkg://evil_configs']"
    if how == "override":
        assert "would import a Python package" in attack(*FAST, override)
    elif how == "primary config":
        assert "would import a Python package" in attack("--config-dir", str(folder), "--config-name", "x", *FAST)
    elif how == "--cfg":
        assert "would import a Python package" in attack(*FAST, override, "--cfg", "job")
    else:
        monkeypatch.setenv("COMP_LINE", f"fluxexp {override} mod")
        monkeypatch.setenv("COMP_POINT", "99")
        monkeypatch.setattr(sys, "argv", ["fluxexp", "-sc", "query=bash"])
        with pytest.raises(SystemExit):
            command.main()
        assert not marker.exists()


def test_yaml_tags_make_no_objects(attack: Attack, tmp_path: Path, marker: Path) -> None:
    text = f"{HEADER}name: !!python/object/apply:os.mkdir [{marker}]\n"
    folder = written(tmp_path / "mine", "experiment/x.yaml", text)
    assert "is not valid YAML" in attack("--config-dir", str(folder), "+experiment=x", *FAST)


def test_a_search_calls_only_samplers_of_optuna(attack: Attack, tmp_path: Path, marker: Path) -> None:
    search = ("-m", "hydra/sweeper=optuna", "objective=quality", "sampling.steps=range(2,4)", *FAST)
    for override in ("hydra.sweeper.custom_search_space=os.mkdir", "hydra.sweeper.sampler._target_=os.mkdir"):
        assert override.partition("=")[0] in attack(*search, override)
    call = f"+hydra.sweeper.sampler.x={{_target_:os.mkdir,path:{marker}}}"
    assert "hydra.sweeper.sampler.x" in attack(*search, call)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "${{oc.env:{name}}}") for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MYSQL_PWD")),
        ("FLUXEXP_PASSWORD", "${{oc.decode:${{oc.env:{name},x}}}}"),
    ],
)
def test_a_config_reads_no_secret(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, "hunter2")
    value = text.format(name=name)
    folder = written(tmp_path / "mine", "experiment/x.yaml", f"{HEADER}tracking: {{group: '{value}'}}\n")
    for error in (
        attack("--config-dir", str(folder), "+experiment=x", *FAST),
        attack(f'tracking.group="{value}"', *FAST),
    ):
        assert "is not an environment variable that configs may read" in error
        assert f"KEY=${name}" in error
        assert "hunter2" not in error


@pytest.mark.parametrize("name", ["HOME", "SLURM_JOB_ID", "PHOTOS_DIR", "FLUXEXP_STUDY", "LANG"])
def test_a_config_reads_paths_and_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from fluxexp.cli.compose import check_command
    from fluxexp.cli.location import config_directory

    monkeypatch.setenv(name, "17")
    checked = check_command(config_directory(), "config", ["model=fake", f"tracking.group=${{oc.env:{name}}}"], False)
    assert checked.config.tracking.group == "17"


@pytest.mark.parametrize(
    "overrides",
    [
        ("hydra.verbose=true",),
        ("hydra/job_logging=stdout", "hydra.job_logging.root.level=DEBUG"),
        ("hydra/launcher=basic",),
        (
            "hydra/sweeper=optuna",
            "hydra/sweeper/sampler=random",
            "hydra.sweeper.n_trials=3",
            "hydra.sweeper.sampler.seed=1",
        ),
    ],
)
def test_what_users_change_is_allowed(overrides: tuple[str, ...]) -> None:
    from fluxexp.cli.compose import check_command
    from fluxexp.cli.location import config_directory

    check_command(config_directory(), "config", ["model=fake", *overrides], multirun=False)


def test_a_file_that_only_one_combination_chooses_is_refused_when_it_is_composed(
    attack: Attack, tmp_path: Path, marker: Path
) -> None:
    """Each group alone is fine. The guard sits where Hydra composes, so it also sees the combination."""
    folder = written(tmp_path / "mine", "x.yaml", "defaults: [config, {pair: '${cost}_${report}'}]\n")
    for name in ("a", "b"):
        written(folder, f"report/{name}.yaml", "html: false\n")
        written(folder, f"cost/{name}.yaml", "usd_per_gpu_hour: 1\n")
        for other in ("a", "b"):
            evil = f"hydra: {{job: {{env_set: {{PYTHONPATH: {marker}}}}}}}\n" if (name, other) == ("b", "b") else ""
            written(folder, f"pair/{other}_{name}.yaml", f"{HEADER}{evil}seed: 1\n")
    written(folder, "pair/unknown_html.yaml", f"{HEADER}seed: 1\n")
    options = ("--config-dir", str(folder), "--config-name", "x", *FAST)
    error = attack("-m", "hydra/launcher=basic", "cost=a,b", "report=a,b", *options, left=["multirun"])
    assert "hydra.job.env_set" in error


def test_the_error_shows_no_secret_that_hydra_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hidden-123")
    with pytest.raises(ConfigError, match=r"hydra\.job\.env_copy") as caught:
        check_command(config_directory(), MAIN_CONFIG, ["model=fake", "hydra.job.env_copy=[WANDB_API_KEY]"], None)
    assert "hidden-123" not in str(caught.value)
