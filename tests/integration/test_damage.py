"""Damaged scores, events and figures are left out, reported and made again. Telemetry that breaks costs no image."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxexp.address import Address
from fluxexp.compare import RunView, run_figures
from fluxexp.compare.__main__ import main as compare_main
from fluxexp.config import RunConfig, check
from fluxexp.errors import FluxexpError
from fluxexp.experiment import Outcome, SweepPoint, run_experiment, run_sweep
from fluxexp.experiment.rescoring import Rescoring, score_again
from fluxexp.plan import Plan
from fluxexp.replay import replay
from fluxexp.replay.source import Source
from fluxexp.report.__main__ import main as report_main
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.run_data import read_run
from fluxexp.report.run_report import run_page
from fluxexp.report.sweep_data import read_sweep
from fluxexp.report.sweep_report import sweep_page
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.telemetry import sampler
from fluxexp.tracking import null_tracker
from fluxexp.tracking.summary_values import summary_values
from tests.faults.shim import failing
from tests.program import FAKE, Done, Program

Compose = Callable[..., RunConfig]
SMALL = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.limit=2", "metrics=basic", "tracking=disabled")
ELSEWHERE = Address.of("outputs")
DAMAGE = {
    "binary": bytes(range(256)),
    "nothing": b"",
    "null": b"null",
    "list": b"[1, 2]",
    "number": b"3",
    "nan": b'{"status": "complete", "num_ok": NaN, "num_tasks": NaN, "wall_s": NaN}',
    "huge": b'{"status": "complete", "num_ok": 1' + b"0" * 400 + b', "points": [], "ranks": [{"rank": 1e999}]}',
    "deep": b'{"a": ' + b"[" * 100_000,
    "nested": b'{"status": "complete", "scores": ' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
    "wrong": b'{"status": ["complete"], "ranks": {"0": 3}, "points": {"a": 1}, "balance": 4, "scores": [], "cost": ""}',
    "inner": b'{"status": "complete", "points": [null, 3, {"status": "", "directory": "../.."}], "notes": {"a": "b"}}',
    "nulls": b'{"status": "complete", "scores": null, "ranks": null, "notes": null, "points": null, "cost": null}',
    "surrogate": b'{"status": "complete", "name": "\\ud800", "points": []}',
    "bomb": b"a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b]\n",
    "aliases": b"- &a [x,x,x,x,x,x,x,x,x]\n- &b [*a,*a,*a,*a,*a,*a,*a,*a]\n- &c [*b,*b,*b,*b,*b,*b]\n- [*c,*c,*c,*c]\n",
    "tag": b"!!python/object/apply:os.system [true]\n",
    "date": b"- 2026-99-99\n- 1e400\n- !!int x\n",
}
SOME = ("binary", "deep", "wrong", "nulls", "aliases")
"""The default suite uses these; the others take the same ways."""
any_content = pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name, marks=() if name in SOME else pytest.mark.slow)
        for name, content in DAMAGE.items()
    ],
)


def run_config(compose: Compose, root: Path, *changes: str) -> RunConfig:
    config = compose(*SMALL, f"output.dir={root}", *changes)
    check(config)
    return config


def make_run(compose: Compose, root: Path, *changes: str) -> Outcome:
    return run_experiment(run_config(compose, root, *changes), ELSEWHERE, [])


def make_sweep(compose: Compose, root: Path) -> list[Outcome]:
    overrides = [[f"sampling.steps={steps}"] for steps in (2, 4)]
    points = [SweepPoint(one, run_config(compose, root, *one)) for one in overrides]
    return run_sweep(points, ELSEWHERE)


def call(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run a command. It may refuse what is damaged, but not with a traceback."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    with suppress(SystemExit):
        main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("original")


@pytest.fixture
def run(folder: Path, compose: Compose, tmp_path: Path) -> Path:
    """A copy of a finished run with scores."""
    if not (folder / "run").exists():
        make_run(compose, folder / "run")
    shutil.copytree(folder / "run", tmp_path / "run")
    return next((tmp_path / "run").iterdir())


@pytest.fixture
def sweep(folder: Path, compose: Compose, tmp_path: Path) -> Path:
    """A copy of a finished sweep."""
    if not (folder / "sweep").exists():
        make_sweep(compose, folder / "sweep")
    shutil.copytree(folder / "sweep", tmp_path / "sweep")
    return next((tmp_path / "sweep").glob("*-sweep-*"))


@any_content
def test_no_content_of_its_files_stops_a_reader_of_a_run(
    run: Path, compose: Compose, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("summary.json", "overrides.yaml", "scores/sets.json", "report.html", "contact_sheet.png"):
        (run / name).write_bytes(content)
    directory = RunDirectory(Address.of(run))
    call(report_main, monkeypatch, run)
    call(compare_main, monkeypatch, run, run)
    config = run_config(compose, run.parent)
    replay([RunDirectory(Address.of(run))], config.tracking)
    assert score_again(Address.of(run), Rescoring({}, config.parallelism))
    assert make_run(compose, run.parent).status == "complete"
    summary = directory.reader.summary()
    assert summary is not None
    assert (summary["num_ok"], summary["scores"]["blank"]["num"]) == (2, 2)


@any_content
def test_no_content_of_sweep_json_stops_a_reader(
    sweep: Path, compose: Compose, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sweep / "sweep.json").write_bytes(content)
    call(report_main, monkeypatch, sweep)
    config = run_config(compose, sweep.parent)
    with suppress(FluxexpError):
        score_again(Address.of(sweep), Rescoring({}, config.parallelism))
    assert [outcome.status for outcome in make_sweep(compose, sweep.parent)] == ["complete", "complete"]
    values = SweepDirectory(Address.of(sweep)).reader.values()
    assert values is not None
    assert (values["num_tasks"], len(values["points"]), values["status"]) == (4, 2, "complete")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from paths_of(inner, (*path, name))


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


def read_all(run: Path) -> None:
    """What every reader does with the summary of a run."""
    directory = RunDirectory(Address.of(run))
    page = read_run(directory)
    run_page(page, Samples({})).encode()
    plan = Plan.read(directory)
    run_figures(RunView.read(plan))
    summary_values(Source.read(directory).summary({}))
    try:
        sound = directory.reader.summary()
    except FluxexpError:
        return
    json.dumps(sound, allow_nan=True).encode()
    outcome = Outcome.of(directory.address, sound or {"status": ""})
    outcome.objective("quality"), outcome.objective("device_s_per_image")


def replaced(document: bytes, data: st.DataObject) -> str:
    """A JSON document with a random value in place of a random one."""
    whole = json.loads(document)
    path = data.draw(st.sampled_from(list(paths_of(whole))))
    return json.dumps(with_value(whole, path, data.draw(json_values)))


def check_summaries(run: Path, num_examples: int) -> None:
    file = run / "summary.json"
    original = file.read_bytes()

    @settings(max_examples=num_examples)
    @given(data=st.data())
    def check_one(data: st.DataObject) -> None:
        file.write_text(replaced(original, data))
        read_all(run)

    check_one()


def check_sweeps(sweep: Path, num_examples: int) -> None:
    file = sweep / "sweep.json"
    original = file.read_bytes()
    directory = SweepDirectory(Address.of(sweep))

    @settings(max_examples=num_examples)
    @given(data=st.data())
    def check_one(data: st.DataObject) -> None:
        file.write_text(replaced(original, data))
        sweep_page(read_sweep(directory, {}), Samples({}), False).encode()
        with suppress(FluxexpError):
            for point in (directory.reader.values() or {"points": []})["points"]:
                directory.run_of(point)

    check_one()


def test_any_value_in_place_of_any_key_is_read(run: Path, sweep: Path) -> None:
    check_summaries(run, 5)
    check_sweeps(sweep, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_values_in_place_of_any_key_are_read(run: Path, sweep: Path) -> None:
    check_summaries(run, 40)
    check_sweeps(sweep, 25)


BAD_SCORES = [
    b"\xff\xfe\0",
    b"null",
    b'{"key": "k", "metrics": {"blank": "high"}, "version": 1}',
    b'{"key": "k", "metrics": {"blank": NaN}, "version": 1}',
    b'{"key": "k", "metrics": [], "version": 1}',
    b'{"key": "k", "metrics": {}, "by": {"blank": 3}, "version": 1}',
    b'{"key": "k", "metrics": {"blank": 1' + b"0" * 400 + b'}, "version": 1}',
    b"[" * 100_000,
    b'{"key": "' + b"x" * 100,
]


def test_a_damaged_score_is_reported_once_and_made_again(
    run: Path, compose: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    before = RunDirectory(Address.of(run)).reader.scores()
    (stream,) = (run / "scores").glob("*.jsonl")
    first, second = stream.read_bytes().splitlines()
    stream.write_bytes(b"\n".join([*BAD_SCORES, second, b""]))
    capsys.readouterr()
    outcome = make_run(compose, run.parent)
    assert outcome.summary["scoring"]["num_scored"] == 1
    reports = [text for text in capsys.readouterr().err.splitlines() if "left out" in text]
    assert len(reports) == 1
    assert f"{stream.name}, line 1" in reports[0]
    assert f"and {len(BAD_SCORES) - 1} more of this file" in reports[0]
    after = RunDirectory(Address.of(run)).reader.lenient().scores()
    assert after == before
    assert json.loads(first)["key"] in after


BAD_EVENTS = [
    b"\0",
    b"3",
    b'{"span": 3, "start_s": 1, "end_s": 2}',
    b'{"span": "load", "start_s": "1", "end_s": 2}',
    b'{"span": "load", "start_s": NaN, "end_s": 1e999}',
    b'{"span": "load", "start_s": 1, "end_s": 2, "tasks": []}',
    b'{"span": "load", "start_s": 0, "end_s": 1e14}',
    b"[" * 100_000,
]


def test_damaged_events_are_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stream,) = (run / "events").iterdir()
    stream.write_bytes(stream.read_bytes() + b"\n".join([*BAD_EVENTS, b""]))
    call(report_main, monkeypatch, run)
    config = Plan.read(RunDirectory(Address.of(run))).config
    (report,) = replay([RunDirectory(Address.of(run))], config.tracking)
    assert report.error is None


def test_features_that_are_damaged_are_removed_and_computed_again(run: Path) -> None:
    import numpy as np

    store = RunDirectory(Address.of(run)).reader.features("clip")
    store.write("a", np.ones(4, np.float32), None)
    store.write("b", np.ones(4, np.float32), None)
    (run / "scores" / "features" / "clip" / "b.npz").write_bytes(b"PK damaged")
    with pytest.raises(FluxexpError, match=r"features of 1 images .* were damaged"):
        store.read(["a", "b"])
    assert "a" in store
    assert "b" not in store


def test_scores_that_cannot_be_written_are_not_success(run: Path, compose: Compose) -> None:
    shutil.rmtree(run / "scores")
    (run / "scores").touch()
    outcome = make_run(compose, run.parent)
    assert outcome.status == "incomplete", "which is exit code 1"
    (run / "scores").unlink()
    outcome = make_run(compose, run.parent)
    assert (outcome.status, outcome.summary["scoring"]["num_scored"]) == ("complete", 2)


def test_events_that_cannot_be_written_cost_no_image(
    run: Path, compose: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in place of the folder is a real error of every append."""
    shutil.rmtree(run / "events")
    (run / "events").touch()
    outcome = make_run(compose, run.parent, "dataset.limit=4", "metrics=none", "report=off")
    assert (outcome.status, outcome.summary["num_ok"]) == ("complete", 4)
    (rank,) = outcome.summary["ranks"]
    assert "events could not be written" in rank["lost_telemetry"]["events"]
    assert capsys.readouterr().err.count("events are incomplete") == 1


def test_a_broken_driver_and_a_broken_tracker_cost_no_image(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("driver or W&B is broken")

    monkeypatch.setattr(sampler, "open_probe", broken)
    for name in ("start", "log", "add_sample_row", "table", "summary", "finish"):
        monkeypatch.setattr(null_tracker.NullTracker, name, broken)
    monkeypatch.setattr(null_tracker.NullTracker, "wants_rows", True)
    outcome = make_run(compose, tmp_path, "metrics=none", "report=off")
    assert (outcome.status, outcome.summary["num_ok"]) == ("complete", 2)
    (rank,) = outcome.summary["ranks"]
    assert rank["lost_telemetry"] == {
        "device figures": "RuntimeError: driver or W&B is broken",
        "shown images": "RuntimeError: driver or W&B is broken",
    }
    summary = RunDirectory(outcome.address).reader.summary()
    assert summary is not None
    assert "driver or W&B is broken" in summary["tracking"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_for_events_costs_no_image(program: Program, number: int) -> None:
    environment = failing(("write", number, -1, "/events/"))
    done = program.run_command(program.command(*FAKE, "dataset.limit=4"), environment)
    assert done.returncode == 0, done.stderr
    (directory,) = program.directories()
    whole = Done(0, "", "", directory)
    assert len(whole.images) == whole.summary["num_ok"] == 4
    assert "events could not be written" in whole.summary["ranks"][0]["lost_telemetry"]["events"]
    assert done.stderr.count("events are incomplete") == 1
