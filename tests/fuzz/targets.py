"""What is fuzzed: each target makes one random case, and passes it to the code that a command runs."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluxexp.address import Address
from fluxexp.cli.compose import check_command
from fluxexp.cli.location import MAIN_CONFIG, config_directory
from fluxexp.config.schema import FolderDatasetConfig, PromptsDatasetConfig, TableDatasetConfig
from fluxexp.data import open_dataset
from fluxexp.errors import FluxexpError, SampleError
from fluxexp.report import write_report
from fluxexp.report.run_data import read_run
from fluxexp.storage.process_deaths import DeathRegister
from fluxexp.storage.run_directory import RunDirectory
from tests.fuzz.damage import bytes_of, changed, lines, text, value
from tests.report.fake_directories import make_run, make_samples

Case = Callable[[random.Random], object]
_CHARTS_EVERY = 20
_REPORT_EVERY = 200
"""One case of so many also reads all that the report shows, or writes the report. This takes much longer."""
_GROUPS = ("model", "scheduler", "sampling", "dataset", "parallelism", "optimization", "metrics", "output", "debug")
_HYDRA = (
    "hydra.verbose",
    "hydra.mode",
    "hydra.callbacks",
    "hydra.searchpath",
    "hydra.sweeper.params",
    "hydra.job.name",
)
_HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/callbacks", "optimization/step_cache")
_VALUES = (
    *("1,2", "range(1,4)", "choice(a,b)", "null", "[]", "{}", "'a b'", "${seed}", "${oc.env:HOME}"),
    *("${oc.env:HF_TOKEN}", "glob(*)", "interval(0,1)", "1e400", "???"),
)
_TARGET = "{_target_:os.mkdir,path:marker}"


def commands(root: Path) -> Case:
    """Overrides on the command line."""
    checked = check_command(config_directory(), MAIN_CONFIG, ["model=fake"], multirun=False)
    keys = [f"{group}.{key}" for group in _GROUPS for key in _keys(getattr(checked.config, group))] + ["name", "seed"]
    files = [file.relative_to(config_directory()).with_suffix("") for file in config_directory().rglob("*.yaml")]

    def one(source: random.Random) -> object:
        overrides = [_override(source, keys, files) for _ in range(source.randrange(1, 3))]
        if source.random() < 0.7:
            overrides.insert(0, "model=fake")
        return check_command(config_directory(), MAIN_CONFIG, overrides, source.choice([None, True, False]))

    return one


def manifests(root: Path) -> Case:
    """The lines of a manifest."""
    return _stream_of_a_run(root, "manifest")


def scores(root: Path) -> Case:
    """The lines of scores."""
    return _stream_of_a_run(root, "scores")


def summaries(root: Path) -> Case:
    """summary.json, config.yaml and the other files of a run."""
    run = make_run(root / "run", make_samples(2))
    originals = {name: (run / name).read_bytes() for name in ("summary.json", "config.yaml", "overrides.yaml")}

    def one(source: random.Random) -> None:
        name = source.choice(["summary.json", "summary.json", "summary.json", "config.yaml", "overrides.yaml"])
        content = originals[name]
        kind = source.randrange(3)
        if kind == 0 and name == "summary.json":
            content = json.dumps(changed(source, json.loads(content))).encode()
        elif kind == 1:
            content = json.dumps(value(source)).encode("utf-8", "surrogatepass")
        else:
            content = bytes_of(source, content)
        try:
            (run / name).write_bytes(content)
            _read(run, source)
        finally:
            (run / name).write_bytes(originals[name])

    return one


def states(root: Path) -> Case:
    """What a session leaves for the next one: attempt logs, deaths, locks and events. Now and then it is no file."""
    run = make_run(root / "run", make_samples(2))
    process = {"session": "s", "rank": 0, "host": "h", "pid": 1}
    attempts: list[dict[str, Any]] = [
        {"process": process, "begin": ["a", "b"], "end": [], "at_s": 1.5},
        {"begin": [], "end": ["a"]},
    ]
    deaths = {"tasks": {"a": [{"host": "h", "pid": 1, "rank": 0, "begun_s": 1.5}]}, "streams": ["attempts/x.jsonl"]}
    events = next((run / "events").iterdir())
    valid_events = [json.loads(line) for line in events.read_text().splitlines()]

    def one(source: random.Random) -> None:
        file, content = source.choice(
            [
                (run / "attempts" / "x.jsonl", lines(source, attempts)),
                (run / "process_deaths.json", json.dumps(changed(source, deaths)).encode()),
                (run / "process_deaths.json", bytes_of(source, json.dumps(deaths).encode())),
                (run / ".lock", bytes_of(source, b'{"host": "h", "pid": 1, "since": "2026-01-01T00:00:00Z"}')),
                (events, lines(source, valid_events)),
            ]
        )
        file.parent.mkdir(exist_ok=True)
        with _in_place_of(file, content, source):
            _continue(run)
            if file == events:
                read_run(RunDirectory(Address.of(run)))

    return one


@contextmanager
def _in_place_of(file: Path, content: bytes, source: random.Random) -> Generator[None]:
    """`file` with `content`, or one time in 20 a pipe or a folder of its name."""
    original = file.read_bytes() if file.is_file() else None
    file.unlink(missing_ok=True)
    kind = source.randrange(40)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    else:
        file.write_bytes(content)
    try:
        yield
    finally:
        if file.is_dir():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
        if original is not None:
            file.write_bytes(original)


def _continue(run: Path) -> None:
    """Claim a run, and count the deaths of its processes, as the next session does."""
    directory = RunDirectory(Address.of(run))
    try:
        with directory.claimed():
            DeathRegister(directory.store).count()
    except FluxexpError:
        pass


def datasets(root: Path) -> Case:
    """Images, masks, captions and tables."""
    pictures = _pictures(root)
    table = b"prompt,image,mask,key,size,guidance\np,a.png,a_mask.png,k,64x64,3\nq,b.jpg,a_mask.png,l,,\n"
    names = ("t.csv", "t.jsonl", "t.txt", "t.parquet")

    def one(source: random.Random) -> object:
        folder = root / "case"
        folder.mkdir(exist_ok=True)
        for name, content in pictures.items():
            (folder / name).write_bytes(bytes_of(source, content) if source.random() < 0.5 else content)
        (folder / "a.txt").write_bytes(bytes_of(source, b"a cat"))
        row = {"prompt": "p", "image": "a.png", "mask": "a_mask.png", "size": "64x64", "guidance": 2}
        content = lines(source, [row]) if source.random() < 0.5 else bytes_of(source, table)
        name = source.choice(names)
        (folder / name).write_bytes(content)
        kinds: list[Any] = [
            FolderDatasetConfig(kind="folder", path=str(folder), masks=None, truths=None, **_IMAGES),
            TableDatasetConfig(kind="table", path=str(folder / name), **_IMAGES),
            PromptsDatasetConfig(kind="prompts", path=str(folder / name), limit=None),
        ]
        _load_all(source.choice(kinds))
        (folder / name).unlink()
        return None

    return one


TARGETS: dict[str, Callable[[Path], Case]] = {
    "commands": commands,
    "manifests": manifests,
    "scores": scores,
    "summaries": summaries,
    "states": states,
    "datasets": datasets,
}
_IMAGES: dict[str, Any] = {
    "prompt": None,
    "alpha_mask": False,
    "mask": "box",
    "invert_mask": False,
    "mask_blur": 0.0,
    "mask_padding": None,
    "max_image_megapixels": 4.0,
    "allowed_folders": [],
    "images_are": "inputs",
    "controls": None,
    "references": None,
    "limit": None,
    "placement": "fit",
}


def _load_all(config: Any) -> None:
    dataset = open_dataset(config)
    for index in range(len(dataset)):
        dataset.key(index), dataset.identity(index), dataset.inputs(index), dataset.truth(index), dataset.size(index)
        try:
            dataset.load(index)
        except SampleError:
            continue


def _stream_of_a_run(root: Path, stream: str) -> Case:
    run = make_run(root / "run", make_samples(3), failed=1)
    file = run / stream / "a.jsonl"
    valid = [json.loads(line) for line in file.read_text().splitlines()]

    def one(source: random.Random) -> None:
        file.write_bytes(lines(source, valid))
        _read(run, source)

    return one


def _read(run: Path, source: random.Random) -> None:
    """Read a run as resume, scores, compare and report do."""
    address = Address.of(run)
    for reader in (RunDirectory(address).reader, RunDirectory(address).reader.lenient()):
        for use in (
            reader.outcomes,
            reader.score_details,
            reader.scores,
            reader.summary,
            reader.overrides,
            reader.config,
        ):
            try:
                use()
            except FluxexpError:
                continue
    if source.randrange(_CHARTS_EVERY) == 0:
        read_run(RunDirectory(address))
    if source.randrange(_REPORT_EVERY) == 0:
        write_report(address)


def _override(source: random.Random, keys: list[str], files: list[Path]) -> str:
    kind = source.randrange(8)
    if kind == 0:
        return text(source, 24)
    if kind == 1:
        file = source.choice(files)
        return f"{source.choice(['', '+', '++', '~'])}{file.parent}={source.choice([file.name, text(source)])}"
    if kind == 2:
        key = source.choice(_HYDRA)
        given = source.choice([_TARGET, f"{{x:{_TARGET}}}", text(source), "[pkg://os]", "true", "MULTIRUN", "[]", "{}"])
        return f"{source.choice(['', '+', '++', '~'])}{key}={given}"
    if kind == 3:
        return (
            f"{source.choice(_HYDRA_GROUPS)}={source.choice(['basic', 'optuna', 'none', 'default', 'x', text(source)])}"
        )
    key = source.choice(keys)
    if kind == 4:
        place = source.randrange(len(key))
        key = key[:place] + text(source, 3) + key[place + source.randrange(2) :]
    given = source.choice([*_VALUES, str(source.randrange(-2, 2000)), text(source)])
    return f"{source.choice(['', '', '', '+', '++', '~'])}{key}={given}"


def _keys(group: Any) -> list[str]:
    return [name for name in dir(group) if not name.startswith("_")]


def _pictures(root: Path) -> dict[str, bytes]:
    sample = make_samples(1)[0]
    assert sample.image is not None
    made = {}
    for name in ("a.png", "b.jpg", "c.webp", "d.gif", "e.tif", "f.bmp", "g.ico", "a_mask.png"):
        sample.image.save(root / name)
        made[name] = (root / name).read_bytes()
    return made
