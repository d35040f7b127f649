"""All that uses results works over a store without a file on disk. So an object store needs no other change."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from PIL import Image

from fluxexp.address import Address
from fluxexp.compare.__main__ import main as compare_main
from fluxexp.config import RunConfig, check
from fluxexp.errors import ConfigError
from fluxexp.experiment import Outcome, SweepPoint, run_experiment, run_sweep
from fluxexp.experiment.rescoring import Rescoring, score_again
from fluxexp.gate.__main__ import main as gate_main
from fluxexp.report.__main__ import main as report_main
from fluxexp.storage.open_store import STORES, open_store
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.sweep_directory import SweepDirectory
from tests.report.fake_directories import island_of
from tests.storage.memory_store import MemoryStore

Compose = Callable[..., RunConfig]
SMALL = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.limit=2", "output.dir=memory://results/all")
ELSEWHERE = Address.of("outputs")


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[dict[Address, RunStore]]:
    """The stores by address. Adds them to those of `open_store`, and checks that no step creates a file."""
    stores: dict[Address, RunStore] = {}
    monkeypatch.setitem(STORES, "memory", lambda address: stores.setdefault(address, MemoryStore(str(address))))
    monkeypatch.chdir(tmp_path)
    yield stores
    assert list(tmp_path.iterdir()) == []


def make_run(compose: Compose, *changes: str) -> Outcome:
    config = compose(*SMALL, *changes)
    check(config)
    return run_experiment(config, ELSEWHERE, list(changes))


def call(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    main()


def test_a_run_is_made_scored_reported_and_continued(
    compose: Compose, memory: dict[Address, RunStore], capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_run(compose, "tracking=disabled")
    (address,) = (address for address in memory if RunDirectory(address).reader.is_run())
    assert str(address).startswith("memory://results/all/")
    assert (first.address, first.status, first.summary["scoring"]["num_scored"]) == (address, "complete", 2)
    directory = RunDirectory(address)
    outcomes = directory.reader.outcomes()
    assert [record.status for record in outcomes.values()] == ["ok", "ok"]
    assert directory.reader.scores().keys() == outcomes.keys()
    summary = directory.reader.summary()
    assert summary is not None
    assert (summary["num_ok"], summary["tracking"]["mode"], summary["tracking"]["error"]) == (2, "disabled", None)
    for record in outcomes.values():
        assert record.file is not None
        assert Image.open(io.BytesIO(directory.reader.read_image(record.file))).size == (32, 32)
    sheet = directory.store.get("contact_sheet.png")
    page = directory.store.get("report.html")
    assert sheet is not None
    assert page is not None
    results = island_of(page.decode())["results"]
    assert [result["file"] for result in results] == [record.file for record in outcomes.values()]
    output = capsys.readouterr().out
    assert f"report     {address}/report.html" in output
    assert f"results in {address}" in output
    second = make_run(compose, "tracking=disabled", "dataset.limit=3")
    assert (second.address, second.summary["num_resumed"]) == (address, 2)


def test_a_sweep_is_made_scored_again_reported_and_compared(
    compose: Compose,
    memory: dict[Address, RunStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = ("sampling.steps=1", "sampling.steps=2")
    points = [SweepPoint([change], compose(*SMALL, "tracking=disabled", change)) for change in changes]
    outcomes = run_sweep(points, ELSEWHERE)
    assert [outcome.status for outcome in outcomes] == ["complete", "complete"]
    (sweep,) = (SweepDirectory(address) for address in memory if SweepDirectory(address).reader.is_sweep())
    values = sweep.reader.values()
    assert values is not None
    assert [point["directory"] for point in values["points"]] == [outcome.address.name for outcome in outcomes]
    assert [sweep.run_of(point) for point in values["points"]] == [RunDirectory(one.address) for one in outcomes]
    assert len(sweep.reader.scores()) == 2, "distances from the images of the reference point"

    page = sweep.store.get("report.html")
    assert page is not None
    assert [point["href"] for point in island_of(page.decode())["points"]] == [
        f"../{outcome.address.name}/report.html" for outcome in outcomes
    ]
    assert all(open_store(outcome.address).exists("report.html") for outcome in outcomes)

    assert score_again(sweep.address, Rescoring({}, compose(*SMALL).parallelism))
    capsys.readouterr()
    call(report_main, monkeypatch, sweep.address)
    assert f"{sweep.address}/report.html" in capsys.readouterr().out
    call(compare_main, monkeypatch, "--json", *(outcome.address for outcome in outcomes))
    compared = json.loads(capsys.readouterr().out)
    assert compared[str(outcomes[1].address)]["num_pairs"] == 2
    with pytest.raises(SystemExit, match="2"):
        call(gate_main, monkeypatch, "--metric", "ssim_to_reference", *(outcome.address for outcome in outcomes))
    assert "2 samples, and a verdict needs at least 8" in capsys.readouterr().out


def test_an_address_without_a_store_is_one_problem(compose: Compose) -> None:
    config = compose(*SMALL, "output.dir=nowhere://results", "tracking=disabled")
    with pytest.raises(ConfigError, match=r"output\.dir='nowhere://results': .*no store for nowhere://; .*memory://"):
        run_experiment(config, ELSEWHERE, [])
