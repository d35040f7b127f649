from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluxexp.config.schema import PromptsDatasetConfig
from fluxexp.data import open_dataset
from fluxexp.errors import ConfigError
from tests.data.making import assert_checks_index, assert_threads_agree, config_error, keys_of, prompts, sample_error


def text(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    lines = "\ufeffa cat\r\n\r\n  ein Käfer \nline\u2028separator\x0c inside\na cat".encode()
    dataset = prompts(text(tmp_path / "p.txt", lines))
    assert [dataset.load(index).prompt for index in range(len(dataset))] == [
        "a cat",
        "ein Käfer",
        "line\u2028separator\x0c inside",
        "a cat",
    ]
    assert len(set(keys_of(dataset))) == 4
    sample = dataset.load(0)
    assert (sample.key, sample.image, sample.mask, sample.truth, sample.size) == (
        dataset.key(0),
        None,
        None,
        None,
        None,
    )
    assert keys_of(prompts(tmp_path / "p.txt", limit=2)) == keys_of(dataset)[:2]


def test_a_line_that_is_not_utf8_fails_only_its_sample(tmp_path: Path) -> None:
    dataset = prompts(text(tmp_path / "p.txt", b"a cat\nK\xe4fer\na dog\n"))
    assert f"{tmp_path / 'p.txt'}, row 2: is not UTF-8" in sample_error(dataset, 1)
    assert [dataset.load(index).prompt for index in (0, 2)] == ["a cat", "a dog"]


def test_a_table_has_prompts_keys_and_sizes(tmp_path: Path) -> None:
    rows = [{"prompt": "a cat", "key": "c", "size": "64x32"}, {"prompt": "a dog", "size": 64}, {"key": "none"}]
    path = text(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)).encode())
    dataset = prompts(path)
    first, second = dataset.load(0), dataset.load(1)
    assert (first.key, first.prompt, first.size, first.image) == ("c", "a cat", (32, 64), None)
    assert (second.key, second.prompt, second.size) == (dataset.key(1), "a dog", (64, 64))
    assert f"{path}, row 3: has no prompt" in sample_error(dataset, 2)


def test_prompts_have_the_same_keys_in_a_text_file_and_a_table(tmp_path: Path) -> None:
    plain = prompts(text(tmp_path / "p.txt", b"a cat\na dog\na cat\n"))
    columns = prompts(text(tmp_path / "p.csv", b"prompt\na cat\na dog\na cat\n"))
    assert keys_of(plain) == keys_of(columns)


def test_config_errors_name_the_mistake(tmp_path: Path) -> None:
    for name in ("p.txt", "p.csv", "p.jsonl"):
        assert f"dataset.path='{tmp_path / name}': contains no rows" in config_error(
            prompts, text(tmp_path / name, b"\n\n")
        )
    assert "did you mean 'prompts'?" in config_error(prompts, text(tmp_path / "p.csv", b"prompts\na cat\n"))
    assert "use one of these file types: .txt, .csv, .jsonl, .parquet" in config_error(
        prompts, text(tmp_path / "p.md", b"a cat")
    )
    assert "is not a file" in config_error(prompts, tmp_path / "none.txt")
    with pytest.raises(ConfigError, match=r"dataset\.path: is not set\n +set dataset\.path=FILE"):
        open_dataset(PromptsDatasetConfig(kind="prompts", path="", limit=None))


def test_loading_is_thread_safe_and_checks_the_index(tmp_path: Path) -> None:
    dataset = prompts(text(tmp_path / "p.txt", "\n".join(f"prompt {n}" for n in range(30)).encode()))
    assert_threads_agree(dataset)
    assert_checks_index(dataset)
