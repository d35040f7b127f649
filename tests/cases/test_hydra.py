"""Commands and config files as users of Hydra write them."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from fluxexp.config import RunConfig
from fluxexp.experiment import Outcome, SweepPoint
from fluxexp.interruption import ENDS_AT_ONCE, WARNINGS
from fluxexp.storage.run_directory import RUNS_ROOT, SWEEPS_ROOT
from tests.program import FAKE, Program

command = import_module("fluxexp.cli.main")  # its package has a function of the same name
INPUTS = Path(__file__).parent / "inputs" / "confdir"
HEADER = "# @package _global_\n"
Points = Callable[..., list[RunConfig]]
Said = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Runs the command line in this process, in an empty directory. Returns the exit code."""
    handlers = {number: signal.getsignal(number) for number in (*ENDS_AT_ONCE, *WARNINGS)}
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fluxexp", *arguments])
        try:
            command.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def points(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Points:
    """The configs of the jobs that a command passes on: of the sweep's points, or of the single run."""
    configs: list[RunConfig] = []

    def run_sweep(points: list[SweepPoint], root: object, first: object = None, *, is_whole: bool) -> list[Outcome]:
        for point in points:
            assert point.config is not None, point.error
            configs.append(point.config)
        return [Outcome(SWEEPS_ROOT) for _ in points]

    def run_experiment(config: RunConfig, root: object, overrides: object, *, is_point: bool) -> Outcome:
        configs.append(config)
        return Outcome(RUNS_ROOT)

    monkeypatch.setattr(command, "run_sweep", run_sweep)
    monkeypatch.setattr(command, "run_experiment", run_experiment)

    def points(*arguments: str) -> list[RunConfig]:
        configs.clear()
        assert run(*arguments) == 0
        return list(configs)

    return points


@pytest.fixture
def said(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Said:
    """What a wrong command prints. It prints one error and exits with 2."""

    def said(*arguments: str) -> str:
        assert run(*arguments) == 2
        stderr = capsys.readouterr().err
        assert stderr.count("fluxexp: the config cannot be run") == 1
        assert "Traceback" not in stderr
        return stderr

    return said


def photos(folder: Path) -> Path:
    """A folder with one picture, its mask and its caption."""
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32), "gray").save(folder / "cat.jpg")
    Image.new("L", (32, 32), 255).save(folder / "cat_mask.png")
    (folder / "cat.txt").write_text("a cat")
    return folder


FOLDER = ("model=fake", "dataset=folder")


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ('"a, b","c, d"', ["a, b", "c, d"]),
        ("'it\\'s','a \"b\"'", ["it's", 'a "b"']),
        ('"一只猫","ein Öl-Bild"', ["一只猫", "ein Öl-Bild"]),
        ('"x=1","y=2"', ["x=1", "y=2"]),
        ('"[a]","{b: c}"', ["[a]", "{b: c}"]),
        ('"a\\\\","b"', ["a\\", "b"]),
        ('""," padded "', ["", " padded "]),
        ("a\\,b,c\\=d", ["a,b", "c=d"]),
        ("1e3,2024_05_01,007,true,plain", ["1e3", "2024_05_01", "007", "true", "plain"]),
        ('choice(1_0,"2, 3")', ["1_0", "2, 3"]),
        ('"100%",50%', ["100%", "50%"]),
    ],
)
def test_each_job_of_a_sweep_gets_the_text_that_was_typed(points: Points, typed: str, values: list[str]) -> None:
    jobs = points("-m", *FOLDER, f"dataset.prompt={typed}", "dataset.path=x")
    assert [job.dataset.prompt for job in jobs] == values  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ('["a, b",c],[d]', [["a, b", "c"], ["d"]]),
        ("[],[1e3,2024_05_01,true]", [[], ["1e3", "2024_05_01", "true"]]),
        ('["猫"],["x=1"]', [["猫"], ["x=1"]]),
    ],
)
def test_each_job_of_a_sweep_gets_the_list_that_was_typed(points: Points, typed: str, values: list[list[str]]) -> None:
    assert [job.tracking.tags for job in points("-m", "model=fake", f"tracking.tags={typed}")] == values


def test_a_sweep_over_lists_of_numbers_and_over_top_level_keys(points: Points) -> None:
    jobs = points("-m", "model=fake", "model.seconds_per_step=[0.5],[1,2]", "seed=3,4", "name=1e3,b")
    assert [job.model.seconds_per_step for job in jobs[::4]] == [[0.5], [1.0, 2.0]]  # type: ignore[union-attr]
    assert [(job.seed, job.sampling.seed, job.name) for job in jobs[:4]] == [
        (3, 3, "1e3"),
        (3, 3, "b"),
        (4, 4, "1e3"),
        (4, 4, "b"),
    ]


@pytest.mark.parametrize("name", ["2024_05_01", "2024-05-01", "1e3", "007", "0x10", "1_000", "v1.10", "1.10", "true"])
def test_a_name_that_looks_like_a_number_keeps_its_characters(points: Points, name: str) -> None:
    (job,) = points("model=fake", f"output.dir={name}", f"name={name}", f"tracking.tags=[{name},b]")
    assert (job.output.dir, job.name, job.tracking.tags) == (name, name, [name, "b"])


def test_numbers_stay_numbers_where_the_key_is_one(points: Points) -> None:
    (job,) = points("model=fake", "sampling.guidance=1e1", "sampling.steps=1_0", "output.paste=true", "output.dir=null")
    assert (job.sampling.guidance, job.sampling.steps, job.output.paste, job.output.dir) == (10.0, 10, True, None)


def test_a_number_in_yaml_where_text_is_needed_is_an_error(said: Said, tmp_path: Path) -> None:
    own(tmp_path, "experiment/mine.yaml", "output:\n  dir: 2024_05_01\n")
    error = said("--config-dir", str(tmp_path), "+experiment=mine")
    assert "output.dir=20240501: must be text" in error
    assert "put it in quotes" in error


@pytest.mark.parametrize("name", ["#1", "a,b", "it's", "photos (1)", "照片", "Q&A", "epoch=3-step=99"])
def test_a_name_that_needs_quotes_is_answered_with_the_quoted_override(points: Points, said: Said, name: str) -> None:
    error = said(*FOLDER, f"dataset.path={name}")
    (proposed,) = [words for words in shlex.split(error.partition(": ")[2].split("\n")[-2]) if "path=" in words][-1:]
    (job,) = points(*FOLDER, proposed)
    assert job.dataset.path == name  # type: ignore[union-attr]


def test_a_folder_with_a_reserved_name_can_be_quoted(points: Points) -> None:
    (job,) = points(*FOLDER, 'dataset.path="null"')
    assert job.dataset.path == "null"  # type: ignore[union-attr]


def own(folder: Path, name: str, text: str, header: str = HEADER) -> Path:
    """Write a config file of the user. Returns it."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(header + text)
    return file


def test_an_own_primary_config_composes_as_in_plain_hydra(points: Points) -> None:
    (job,) = points("--config-dir", str(INPUTS / "primary"), "--config-name", "study", "sampling.guidance=2")
    assert (job.name, job.model.name, job.sampling.steps, job.sampling.guidance) == ("study", "mine", 3, 2.0)
    jobs = points("--config-dir", str(INPUTS / "primary"), "--config-name", "study.yaml", "-m", "sampling.steps=4,5")
    assert [job.sampling.steps for job in jobs] == [4, 5]


def test_the_search_path_of_an_own_primary_config_counts(points: Points, said: Said, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(INPUTS / "primary" / "model", shared / "model")
    path = f"hydra:\n  searchpath: [file://{shared}]\n"
    own(tmp_path / "conf", "study.yaml", f"defaults:\n  - config\n  - _self_\n{path}", header="")
    (job,) = points("--config-dir", "conf", "--config-name", "study", "model=mine")
    assert job.model.name == "mine"
    (job,) = points(f"hydra.searchpath=[file://{shared}]", "model=mine")
    assert job.model.name == "mine"
    assert "model='mine': is not a file of this group" in said("model=mine")
    assert "/gone': is not a folder" in said("hydra.searchpath=[file:///gone]", "model=fake")


def test_an_own_primary_config_without_fluxexps_needs_all_groups(points: Points, said: Said, tmp_path: Path) -> None:
    groups = "cost debug engine failures ip_adapter lora metrics output parallelism optimization redux report sampling"
    names = "unknown none local default none none none default auto auto none html default"
    groups, names = f"{groups} scheduler tracking", f"{names} deis disabled"
    entries = [f"  - {group}: {name}\n" for group, name in zip(groups.split(), names.split(), strict=True)]
    text = (
        f"defaults:\n  - model: fake\n  - dataset: shapes\n{''.join(entries)}  - _self_\nname: own\nobjective: null\n"
    )
    own(tmp_path / "conf", "own.yaml", f"{text}seed: 5\n", header="")
    jobs = points("--config-dir", "conf", "--config-name", "own", "-m", "sampling.steps=1,2")
    assert [(job.name, job.scheduler.name, job.sampling.seed, job.sampling.steps) for job in jobs] == [
        ("own", "deis", 5, 1),
        ("own", "deis", 5, 2),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"conf", "multirun"}, "Hydra makes no directories by the clock"
    own(tmp_path / "conf", "own.yaml", "defaults:\n  - model: fake\n  - _self_\nname: own\n", header="")
    assert "begin its defaults list with `- config`" in said("--config-dir", "conf", "--config-name", "own")


def test_a_mistyped_config_name_or_folder_is_named(said: Said) -> None:
    error = said("--config-dir", str(INPUTS / "primary"), "--config-name", "studdy")  # codespell:ignore
    assert "--config-name='studdy': is not a config" in error
    assert "did you mean 'study'?" in error
    assert "/nowhere': is not a directory" in said("--config-dir", "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampling:\n  steps: [3\nname: x: y\n", "mine.yaml: is not valid YAML in line 4"),
        ("sampling:\n\tsteps: 3\n", "mine.yaml: is not valid YAML in line 3, column 1"),
        ("name: a\nname: b\n", "mine.yaml: is not valid YAML in line 3, column 1: found duplicate key name"),
        ("name: caf\N{LATIN SMALL LETTER E WITH ACUTE}\n", "mine.yaml: is not encoded in UTF-8"),
        ("defaults:\n  - override /report: off\n", "put the name of the file in quotes"),
        ("- a\n- b\n", "In 'experiment/mine'"),
        ("defaults:\n  - override /model: tiny_fil\n", "model='tiny_fil': is not a file of this group"),
        ("defaults:\n  - /modle: tiny_fill\n", "experiment/mine.yaml: names 'modle/tiny_fill'"),  # codespell:ignore
        ("defaults:\n  - override /modle: tiny_fill\n", "Could not override 'modle'"),  # codespell:ignore
        ("sampling: 3\n", "sampling=3: must be a group of keys"),
        ("name: ${oops\n", "${oops"),
        ("hydra:\n  foo: 1\n", "Key 'foo' not in 'HydraConf'"),
        ("hydra:\n  run:\n    dir: x\n", "set output.dir=DIR"),
    ],
)
def test_a_wrong_file_is_named_with_line_or_key(said: Said, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes((HEADER + text).encode("latin-1"))
    assert words in said("--config-dir", str(tmp_path), "+experiment=mine")


def test_an_experiment_without_the_global_package_is_refused(said: Said, tmp_path: Path) -> None:
    own(tmp_path, "experiment/mine.yaml", "sampling:\n  steps: 3\n", header="")
    error = said("--config-dir", str(tmp_path), "+experiment=mine")
    assert "+experiment='mine'" in error
    assert "write `# @package _global_` as the first line" in error


def test_a_file_that_fluxexps_file_hides_is_refused(said: Said, tmp_path: Path) -> None:
    own(tmp_path, "model/tiny_fill.yaml", "name: mine\n", header="")
    assert "tiny_fill.yaml: would not be read" in said("--config-dir", str(tmp_path))


def test_the_mode_and_the_sweep_of_a_config_file_make_a_sweep(points: Points) -> None:
    grid = points("--config-dir", str(INPUTS / "search_and_grid"), "+experiment=grid", "model=fake")
    assert [(job.sampling.steps, job.dataset.seed) for job in grid] == [  # type: ignore[union-attr]
        (steps, seed) for steps in (1, 2, 3) for seed in (0, 1)
    ]
    jobs = points("+experiment=steps", "model=fake", "sampling.guidance=1")
    assert [(job.sampling.steps, job.sampling.guidance) for job in jobs] == [(n, 1.0) for n in (1, 2, 4, 8, 16)]


def test_text_in_the_sweep_of_a_config_file_stays_as_it_was_written(points: Points, tmp_path: Path) -> None:
    params = "name: 1e3,b\n      dataset.prompt: '\"a, b\",2024_05'\n"
    own(tmp_path, "experiment/mine.yaml", f"hydra:\n  sweeper:\n    params:\n      {params}")
    for arguments in (("+experiment=mine",), ("-m", "+experiment=fill,mine")):
        jobs = points("--config-dir", str(tmp_path), *arguments, *FOLDER)
        found = [(job.name, job.dataset.prompt) for job in jobs[-4:]]  # type: ignore[union-attr]
        assert found == [("1e3", "a, b"), ("1e3", "2024_05"), ("b", "a, b"), ("b", "2024_05")]


def test_a_file_with_a_name_like_a_number_can_be_chosen(points: Points, tmp_path: Path) -> None:
    for name in ("2024_05_01", "1e3"):
        own(tmp_path, f"experiment/{name}.yaml", f"name: n{name}\n")
    place = ("--config-dir", str(tmp_path), "model=fake")
    assert [job.name for job in points(*place, "+experiment=1e3")] == ["n1e3"]
    assert [job.name for job in points(*place, "-m", "+experiment=2024_05_01,1e3")] == ["n2024_05_01", "n1e3"]


def test_a_single_run_of_an_experiment_with_a_sweep_can_be_asked_for(points: Points) -> None:
    for single in ("--run", "hydra.mode=RUN"):
        (job,) = points(single, "+experiment=steps", "model=fake")
        assert job.sampling.steps == 28


def test_a_sweep_over_experiments_makes_the_sweeps_inside(points: Points) -> None:
    jobs = points("-m", "+experiment=fill,steps", "model=fake", "sampling.guidance=2,3")
    assert [(job.name, job.sampling.steps, job.sampling.guidance) for job in jobs] == [
        ("fill", 28, 2.0),
        ("fill", 28, 3.0),
        *(("steps", steps, 2.0) for steps in (1, 2, 4, 8, 16)),
        *(("steps", steps, 3.0) for steps in (1, 2, 4, 8, 16)),
    ]
    jobs = points("-m", "+experiment=steps,caches", "sampling.guidance=2")
    caches = [job.optimization.step_cache and job.optimization.step_cache.name for job in jobs]
    assert caches == [None] * 5 + [None, "first_block", "taylorseer"]


def test_sweeps_inside_experiments_are_checked(said: Said, tmp_path: Path) -> None:
    shutil.copytree(INPUTS / "search_and_grid", tmp_path / "conf")
    place = ("--config-dir", "conf", "-m")
    assert "chooses hydra/sweeper=optuna" in said(*place, "+experiment=grid,search", "objective=quality")
    assert "does not run the sweep inside" in said(*place, "+experiment=fill,grid", "hydra/launcher=basic")
    grid = tmp_path / "conf" / "experiment" / "grid.yaml"
    grid.write_text(grid.read_text().replace("1,2,3", "1,0"))
    assert "sampling.steps=0: must be between 1 and 1000" in said(*place, "+experiment=grid")
    assert "sampling.steps=0: must be between 1 and 1000" in said(*place, "+experiment=fill,grid")
    grid.write_text(grid.read_text().replace("sampling.steps: 1,0", "sampling.stesp: 1,2"))
    assert "did you mean 'sampling.steps'?" in said(*place, "+experiment=fill,grid")


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=x",
        "hydra.sweep.dir=x",
        "hydra.sweep.subdir=x",
        "hydra.job.chdir=true",
        "hydra.output_subdir=x",
        "hydra.run.dir=outputs/${now:%Y}",
    ],
)
def test_directories_of_hydra_are_refused(said: Said, override: str) -> None:
    error = said(override)
    assert override.partition("=")[0] in error
    assert "set output.dir=DIR" in error


def test_options_may_stand_between_overrides(points: Points, said: Said) -> None:
    jobs = points("model=fake", "-m", "sampling.steps=1,2", "--config-dir", str(INPUTS / "primary"), "seed=4")
    assert [(job.sampling.steps, job.seed) for job in jobs] == [(1, 4), (2, 4)]
    assert "--stesp" in said("model=fake", "--stesp")
    assert "exclude each other" in said("-m", "--cfg", "job")
    assert "--config-dir conf" in said("--config-path", "conf")
    assert "start the same command again" in said("--experimental-rerun", "x.pickle")


def test_options_that_show_something(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    from fluxexp import __version__

    assert run("--version") == 0
    assert f"fluxexp {__version__} (Hydra 1." in capsys.readouterr().out
    assert run("--cfg", "job", "-p", "sampling", "sampling.steps=7") == 0
    assert "steps: 7" in capsys.readouterr().out
    assert run("--cfg", "job", "+experiment=steps") == 0
    assert "name: steps" in capsys.readouterr().out
    assert run("--info", "searchpath", "--config-dir", str(INPUTS / "primary")) == 0
    assert "confdir/primary" in capsys.readouterr().out
    assert run("--hydra-help") == 0
    assert "hydra/sweeper" in capsys.readouterr().out


def test_help_shows_commands_files_and_comments(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", "model=fake", "--config-dir", str(INPUTS / "primary")) == 0
    text = capsys.readouterr().out
    for name in ("score", "compare", "report", "replay", "calibrate", "tracking.workspace"):
        assert f"python -m fluxexp.{name}" in text
    lines = {line.strip().split(" ")[0]: line for line in text.splitlines() if line.strip()}
    assert lines["steps:"].endswith("# steps of the schedule")
    assert lines["fail_every:"].endswith("# tasks whose seed is a multiple of this fail; 0: none")
    assert "reconstruct" not in text
    assert "  * fake" in text
    assert "    mine" in text, "files of --config-dir are listed"
    assert "lossless: run the VAE in channels-last layout" in lines["fused_vae:"], "comments of the extended file"


def test_a_shell_is_answered(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("-sc", "install=bash") == 0
    assert capsys.readouterr().out.rstrip().endswith("hydra_bash_completion fluxexp")
    for line, answer in (("fluxexp model=tiny_f", "model=tiny_fill"), ("fluxexp sampling.ste", "sampling.steps=")):
        monkeypatch.setenv("COMP_LINE", line)
        assert run("-sc", "query=bash") == 0
        assert capsys.readouterr().out.split() == [answer]


def test_verbose_shows_log_lines(run: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    level = logging.getLogger().level
    handlers = list(logging.getLogger().handlers)
    assert run("debug=plan", "model=fake") == 0
    assert "Config search path" not in capfd.readouterr().out
    assert run("debug=plan", "model=fake", "hydra.verbose=true") == 0
    assert "Config search path" in "".join(capfd.readouterr())
    logging.getLogger().setLevel(level)
    logging.getLogger().handlers[:] = handlers


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("num_inference_steps=4", "did you mean 'sampling.steps'?"),
        ("sampling.num_inference_steps=4", "did you mean 'sampling.steps'?"),
        ("guidance_scale=4", "did you mean 'sampling.guidance'?"),
        ("output_dir=x", "did you mean 'output.dir'?"),
        ("negative_prompt=ugly", "did you mean 'sampling.negative_prompt'?"),
        ("sampling.negative_prompt_2=ugly", "one negative prompt"),
        ("model.lora=x", "did you mean 'lora.path'?"),
        ("num_gpus=2", "accelerate launch --num_processes N"),
        ("dataset.prompt=hello", "this key belongs to dataset=folder, dataset=hub, dataset=table, dataset=webdataset"),
        ("path=x", "did you mean 'model.path' or 'lora.path' or 'redux.path' or 'ip_adapter.path'?"),
        ("name.x=1", "name is a value, not a group"),
        ("zebra=1", "keys here:"),
        ("sampling.zebra=1", "keys here:"),
    ],
)
def test_the_suggestion_for_a_wrong_key_makes_sense(said: Said, override: str, hint: str) -> None:
    error = said(override)
    assert hint in error
    assert "tracking.project" not in error.partition("keys here")[0]


def test_a_wrong_key_in_a_sweep_is_explained_as_in_a_run(said: Said) -> None:
    error = said("-m", "dataset=folder", "dataset.height=32", "name=a,b", "model=fake,tiny_fill")
    assert "dataset.height='32': is not a key" in error
    assert "this key belongs to dataset=shapes" in error


def test_errors_of_several_ranks_come_once(tmp_path: Path) -> None:
    own(tmp_path, "experiment/bad.yaml", "name: x: y\n")
    arguments = ("--config-dir", str(tmp_path), "+experiment=bad")
    done = subprocess.run(
        Program(tmp_path).command(*arguments, processes=2), cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode != 0
    assert done.stderr.count("is not valid YAML in line 2") == 1
    assert "UserWarning" not in done.stderr


@pytest.mark.slow
def test_a_search_in_a_config_runs_on_several_ranks(program: Program) -> None:
    place = ("--config-dir", str(INPUTS / "search_and_grid"))
    few = ("hydra.sweeper.n_trials=2", "dataset.limit=2")
    code, stdout, stderr = program.ended((*place, "+experiment=search", *FAKE, *few), processes=2)
    assert code == 0, stderr
    assert len([line for line in stdout.splitlines() if line.startswith("sweep ")]) == 1
    assert 1 <= len(program.directories("multirun")) <= 2


def test_an_experiments_sweep_runs_without_the_option(program: Program) -> None:
    code, _, stderr = program.ended(("+experiment=steps", *FAKE, "dataset.limit=1", "sampling.guidance=1"))
    assert code == 0, stderr
    assert len(program.directories("multirun")) == 5
    assert program.directories("multirun", sweeps=True)
    assert not program.directories("outputs")


def test_the_plan_names_everything_for_which_a_run_would_be_refused(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "outputs").touch()
    error = said("debug=plan", "model=fake", "parallelism.device=cuda", "metrics.quality=ssim_hol")
    assert "parallelism.device='cuda': no CUDA device is visible" in error
    assert "did you mean 'ssim_hole'?" in error
    assert "outputs is not a directory that can be written" in error
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_the_plan_of_a_directory_of_another_config_is_refused(
    said: Said, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("debug=plan", "model=fake") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("directory")]
    directory = Path(line.split()[1])
    directory.mkdir(parents=True)
    (directory / "notes.txt").touch()
    assert "was made by another config" in said("debug=plan", "model=fake")
    assert [path.name for path in directory.iterdir()] == ["notes.txt"], "the plan changes nothing"


def test_the_plan_of_a_sweep_names_the_points_that_cannot_run(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "here")
    arguments = ("-m", "debug=plan", "model=fake", "dataset=folder", "metrics=none")
    assert run(*arguments, "dataset.path=here") == 0
    assert capsys.readouterr().err == ""
    assert run(*arguments, "dataset.path=here,gone") == 2
    shown = capsys.readouterr()
    assert "dataset.path='gone': is not a folder" in shown.err
    assert shown.out.count("directory  multirun/") == 1


def test_a_failed_run_says_why(program: Program, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        photos(tmp_path / "photos" / name)
    for name in ("a", "b"):
        (tmp_path / "photos" / name / "cat.txt").unlink()
    (tmp_path / "photos" / "c" / "cat.jpg").write_bytes(b"no picture")
    done = program.run(*FAKE[:1], *FAKE[3:], "dataset=folder", "dataset.path=photos")
    assert done.returncode == 3, done.stderr
    assert "failed     2 x does not exist or is empty; write a caption, or set dataset.prompt (sample " in done.stdout
    assert "failed     1 x is not an image that Pillow can read (sample " in done.stdout
    reasons = [(entry["count"], entry["reason"]) for entry in done.summary["failure_reasons"]]
    assert reasons == [
        (2, "does not exist or is empty; write a caption, or set dataset.prompt"),
        (1, "is not an image that Pillow can read"),
    ]
    sweep = program.sweep("model=fake", "model.fail_every=1", "dataset.limit=2", *FAKE[1:], "sampling.steps=1,2")
    assert sweep.returncode == 3, sweep.stderr
    assert "failed     4 x " in sweep.stdout


def test_wandb_variables_count_where_the_config_says_nothing(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"PROJECT": "vision", "RUN_GROUP": "night", "NAME": "first try", "TAGS": "a, b", "DIR": "logs"}
    (tmp_path / "logs").mkdir()
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    done = program.run(*FAKE[:-1], "tracking.mode=offline", "dataset.limit=1")
    assert done.returncode == 0, done.stderr
    directory = Path(done.summary["tracking"]["directory"])
    assert directory.is_relative_to(tmp_path / "logs" / "wandb")
    assert f"W&B run, offline: {directory}" in done.stdout
    (log,) = directory.glob("*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    shown = subprocess.run([wandb, "leet", "inspect", "--json", log], capture_output=True, text=True, check=True)
    (record,) = [json.loads(line)["run"] for line in shown.stdout.splitlines() if '"type":"run"' in line]
    given = (record["project"], record["run_group"], record["display_name"], sorted(record["tags"]))
    assert given == ("vision", "night", "first try", ["a", "b"])
