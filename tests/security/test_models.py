"""A model runs no code, and a digest pins its files."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxexp.config.model_digest import model_digest
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig
from fluxexp.errors import ModelError
from fluxexp.models.loading.pipeline_loader import load_flux
from tests.conftest import Compose

SOURCE = Path(__file__).parents[2] / "src" / "fluxexp"


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.marker,)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a model that comes with fluxexp, without links."""
    shipped = model_directory("embedded:tiny_fill")
    assert shipped is not None
    return Path(shutil.copytree(shipped, tmp_path / "model"))


def load(compose: Compose, copy: Path, *overrides: str) -> Any:
    config = compose(f"model.path={copy}", *overrides)
    assert isinstance(config.model, FluxModelConfig)
    return load_flux(config.model, config.optimization, torch.device("cpu"))


def test_a_digest_pins_the_files(compose: Compose, copy: Path) -> None:
    digest = model_digest(copy)
    assert load(compose, copy, f"model.sha256={digest}") is not None
    settings = copy / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text() + "\n")
    with pytest.raises(ModelError, match=r"model\.sha256='.*is not the hash of the model's files") as caught:
        load(compose, copy, f"model.sha256={digest}")
    assert model_digest(copy) in str(caught.value)
    assert load(compose, copy) is not None


def test_the_digest_is_that_of_sha256sum(copy: Path) -> None:
    files = [f for f in copy.rglob("*") if f.suffix in (".json", ".safetensors", ".txt", ".model") and f.is_file()]
    pairs = sorted((file.relative_to(copy).parts, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files)
    lines = "".join(f"{digest}  {'/'.join(parts)}\n" for parts, digest in pairs)
    assert model_digest(copy) == hashlib.sha256(lines.encode()).hexdigest()


def test_pickled_weights_are_not_loaded(compose: Compose, copy: Path, tmp_path: Path) -> None:
    weights = next((copy / "transformer").glob("*.safetensors"))
    weights.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"):
        torch.save(Evil(tmp_path / "marker"), copy / "transformer" / name)
    with pytest.raises(ModelError, match="transformer"):
        load(compose, copy)
    assert not (tmp_path / "marker").exists()


def test_code_in_a_model_directory_is_not_imported(compose: Compose, copy: Path, tmp_path: Path) -> None:
    evil = f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n"
    for name in ("pipeline.py", "transformer/modeling.py", "tokenizer/tokenization.py"):
        (copy / name).write_text(evil)
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace('"_class_name": "', '"_class_name": ["pipeline", "Evil"], "x": "', 1))
    with suppress(ModelError):
        load(compose, copy)
    assert not (tmp_path / "marker").exists()


def test_no_source_loads_a_pickle_of_a_file_or_remote_code() -> None:
    for file in SOURCE.rglob("*.py"):
        text = file.read_text()
        assert "trust_remote_code=True" not in text, file
        assert text.count("torch.load(") == text.count("weights_only=True"), file
        if "pickle.load" in text:  # what ranks of one launch send to each other
            assert file.parent.name == "parallel", file
