"""The text cache returns encodings with the same bits, from whichever process, and never a damaged one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxexp.config.optimization_catalog import NONE
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.text.text_cache import TextCache
from tests.models.conftest import PROMPTS, Load, fill_inputs, point, run

CACHED = replace(NONE, text_cache=True)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fluxexp" / "text"


def encoded(model: Flux1Model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that collects the prompts that `model` encodes from now on."""
    prompts: list[str] = []
    encode = model.prompt_encoder.encode

    def noted(given: Sequence[str], length: int | None) -> Any:
        prompts.extend(given)
        return encode(given, length)

    monkeypatch.setattr(model.prompt_encoder, "encode", noted)
    return prompts


def written(model: Flux1Model) -> None:
    assert model.text_cache is not None
    model.text_cache.close()


@pytest.mark.parametrize("device", DEVICES)
def test_a_prompt_is_encoded_once_for_all_runs(load: Load, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    first = load("tiny_fill", optimization=CACHED, device=device)
    assert first.applied_optimizations == ["text_cache"]
    asked = encoded(first, monkeypatch)
    made = first.encode_prompts([*PROMPTS, PROMPTS[0]], None)
    assert asked == PROMPTS
    written(first)
    second = load("tiny_fill", optimization=CACHED, device=device)
    asked = encoded(second, monkeypatch)
    again = second.encode_prompts([PROMPTS[2], PROMPTS[0]], None)
    assert asked == []
    for (tokens, pooled), (same_tokens, same_pooled) in zip(again, [made[2], made[0]], strict=True):
        assert torch.equal(tokens, same_tokens)
        assert torch.equal(pooled, same_pooled)
        assert tokens.device.type == device


def test_the_cache_does_not_change_images(load: Load) -> None:
    plain = run(load("tiny_fill"), fill_inputs(), [point(3)] * 3)
    found = [run(load("tiny_fill", optimization=CACHED), fill_inputs(), [point(3)] * 3) for _ in range(2)]
    assert torch.equal(*found)
    assert (found[0] - plain).norm() < 1e-4 * plain.norm()


def test_only_models_with_the_same_encoders_share_encodings(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = load("tiny_fill", optimization=CACHED)
    fill.encode_prompts(PROMPTS[:1], None)
    written(fill)
    same, other_dtype, other_length = (
        load("tiny_dev", optimization=CACHED),
        load("tiny_fill", "bfloat16", CACHED),
        load("tiny_fill", optimization=CACHED),
    )
    for model, length, expected in ((same, None, []), (other_dtype, None, PROMPTS[:1]), (other_length, 8, PROMPTS[:1])):
        asked = encoded(model, monkeypatch)
        model.encode_prompts(PROMPTS[:1], length)
        assert asked == expected


@pytest.mark.parametrize("damage", [b"", b"not a tensor", None])
def test_a_damaged_file_is_encoded_again(
    load: Load, monkeypatch: pytest.MonkeyPatch, directory: Path, damage: bytes | None
) -> None:
    first = load("tiny_fill", optimization=CACHED)
    first.encode_prompts(PROMPTS[:1], None)
    written(first)
    (file,) = directory.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7] if damage is None else damage)
    second = load("tiny_fill", optimization=CACHED)
    asked = encoded(second, monkeypatch)
    second.encode_prompts(PROMPTS[:1], None)
    written(second)
    assert asked == PROMPTS[:1]
    assert file.read_bytes() == whole


def test_the_least_recently_used_encodings_are_deleted_first(directory: Path) -> None:
    encoding = torch.zeros(4, 256), torch.zeros(16)
    cache = TextCache(["x"], torch.float32, torch.device("cpu"))
    for prompt in "abcd":
        cache.put(prompt, 4, encoding)
    cache.close()
    for age, prompt in enumerate("badc"):
        os.utime(cache._file(prompt, 4), (1000 - age, 1000 - age))
    assert cache.get("a", 4) is not None  # used now
    size = cache._file("a", 4).stat().st_size
    smaller = TextCache(["x"], torch.float32, torch.device("cpu"), limit_bytes=3 * size)
    smaller.put("e", 4, encoding)
    smaller.close()
    assert [prompt for prompt in "abcde" if smaller.get(prompt, 4) is not None] == ["a", "b", "e"]


def test_without_a_writable_directory_the_cache_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = TextCache(["x"], torch.float32, torch.device("cpu"))
    cache.put("a", 4, (torch.zeros(4, 8), torch.zeros(8)))
    cache.close()
    assert cache.get("a", 4) is not None
    assert TextCache(["x"], torch.float32, torch.device("cpu")).get("a", 4) is None


@pytest.mark.slow
def test_several_processes_may_write_the_same_file_at_once(directory: Path) -> None:
    program = """
import torch
from fluxexp.models.text.text_cache import TextCache
cache = TextCache(["x"], torch.float32, torch.device("cpu"))
for turn in range(20):
    for prompt in "abcde":
        cache.put(prompt, 4, (torch.full((64, 64), float(ord(prompt))), torch.zeros(8)))
        found = cache.get(prompt, 4)
        assert found is None or (found[0] == ord(prompt)).all()
cache.close()
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(list(directory.iterdir())) == 5
