from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.records import Record
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.manifest import ManifestWriter, merge, read_attempts
from fluxexp.storage.run_reader import RunReader
from tests.storage.memory_store import MemoryStore


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "key": "k",
        "sample_key": "s",
        "status": "ok",
        "file": "images/k.png",
        "error": None,
        "prompt": "a „star“\u2028 ★",
        "seed": 2**63 - 1,
        "variant": 0,
        "steps": 4,
        "guidance": 3.5,
        "height": 64,
        "width": 64,
        "covered": 1.0,
        "rank": 0,
        "device": "CPU",
        "batch_size": 1,
        "seconds": {"denoise": 0.5},
        "attempt": 1,
    }
    return Record(**(values | changes))


def test_appended_records_are_read_back(tmp_path: Path) -> None:
    manifest = ManifestWriter(LocalStore(tmp_path))
    manifest.append(record())
    manifest.append(record(key="l", status="failed", file=None, error='broken "\n" file'))
    assert read_attempts(LocalStore(tmp_path)).values == [
        record(),
        record(key="l", status="failed", file=None, error='broken "\n" file'),
    ]


def test_writers_never_share_a_stream(tmp_path: Path) -> None:
    one, two, _unused = (ManifestWriter(LocalStore(tmp_path)) for _ in range(3))
    one.append(record(key="a"))
    two.append(record(key="b"))
    assert len(list((tmp_path / "manifest").iterdir())) == 2
    assert sorted(merge(read_attempts(LocalStore(tmp_path)).values)) == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_an_incomplete_last_line_counts_as_not_done(tmp_path: Path, cut: int) -> None:
    manifest = ManifestWriter(LocalStore(tmp_path))
    manifest.append(record(key="a"))
    manifest.append(record(key="b"))
    file = next((tmp_path / "manifest").iterdir())
    file.write_bytes(file.read_bytes()[:-cut])
    assert [r.key for r in read_attempts(LocalStore(tmp_path)).values] == ["a"]


@pytest.mark.parametrize(
    "damage", ["nonsense", '{"key":"k"}', record().to_json().replace('"attempt":1', '"attempt":"x"')]
)
def test_another_damaged_line_is_left_out_and_named(damage: str) -> None:
    store = MemoryStore()
    for line in (record().to_json(), damage, record(key="l").to_json()):
        store.append_record("manifest/x.jsonl", line.encode())
    parsed = read_attempts(store)
    assert [r.key for r in parsed.values] == ["k", "l"]
    reader = RunReader(store)
    assert list(reader.records()) == ["k", "l"]
    assert "1 damaged line" in reader.manifest().damage.sentence()
    assert "manifest/x.jsonl, line 2: " in reader.manifest().damage.sentence()


def test_records_of_a_later_version_are_read() -> None:
    line = record().to_json()[:-1] + ',"color":"red"}'
    assert Record.from_json(line) == record()


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"key":"k"}'])
def test_lines_that_are_not_records(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Record.from_json(line)


attempts = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ok", "failed"]), st.integers(1, 5)))


@given(attempts)
def test_success_beats_failure_and_later_attempts_beat_earlier_ones(made: list[tuple[str, str, int]]) -> None:
    merged = merge([record(key=key, status=status, attempt=n) for key, status, n in made])
    assert set(merged) == {key for key, _, _ in made}
    for key, outcome in merged.items():
        mine = [(status == "ok", n) for k, status, n in made if k == key]
        assert (outcome.status == "ok", outcome.attempt) == max(mine)
