from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.storage.manifest import ManifestWriter, merge, read_attempts


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


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path) as manifest:
        manifest.append(record())
        manifest.append(record(key="l", status="failed", file=None, error='broken "\n" file'))
    assert list(read_attempts(tmp_path)) == [
        record(),
        record(key="l", status="failed", file=None, error='broken "\n" file'),
    ]


def test_writers_never_share_a_file_and_an_empty_one_is_removed(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path) as one, ManifestWriter(tmp_path) as two, ManifestWriter(tmp_path):
        one.append(record(key="a"))
        two.append(record(key="b"))
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted(merge(read_attempts(tmp_path))) == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_torn_last_line_counts_as_not_done(tmp_path: Path, cut: int) -> None:
    with ManifestWriter(tmp_path) as manifest:
        manifest.append(record(key="a"))
        manifest.append(record(key="b"))
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-cut])
    assert [r.key for r in read_attempts(tmp_path)] == ["a"]


def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(record().to_json() + "\nnonsense\n" + record().to_json() + "\n")
    with pytest.raises(StorageError, match=r"x\.jsonl, line 2"):
        list(read_attempts(tmp_path))


def test_records_of_a_later_version_are_understood() -> None:
    line = record().to_json()[:-1] + ',"colour":"red"}'
    assert Record.from_json(line) == record()


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"key":"k"}'])
def test_what_is_not_a_record(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Record.from_json(line)


attempts = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ok", "failed"]), st.integers(1, 5)))


@given(attempts)
def test_success_beats_failure_and_else_the_latest_attempt_counts(made: list[tuple[str, str, int]]) -> None:
    merged = merge(iter([record(key=key, status=status, attempt=n) for key, status, n in made]))
    assert set(merged) == {key for key, _, _ in made}
    for key, outcome in merged.items():
        mine = [(status == "ok", n) for k, status, n in made if k == key]
        assert (outcome.status == "ok", outcome.attempt) == max(mine)
