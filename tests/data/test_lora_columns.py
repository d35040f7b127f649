"""The columns `lora` and `lora_scale`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxexp.config.schema import PromptsDatasetConfig
from fluxexp.data.prompts_dataset import Prompts
from fluxexp.errors import SampleError
from fluxexp.records import SampleLora
from tests import lora_files


def prompts(folder: Path, rows: str, name: str = "rows") -> Prompts:
    path = folder / f"{name}.csv"
    path.write_text(f"key,prompt,lora,lora_scale\n{rows}")
    return Prompts(PromptsDatasetConfig(kind="prompts", path=str(path), limit=None))


def test_paths_start_at_the_table_and_missing_values_stay_open(tmp_path: Path) -> None:
    lora_files.peft_with(tmp_path / "a.safetensors")
    dataset = prompts(tmp_path, "a,x,a.safetensors,0.5\nb,x,a.safetensors,\nc,x,,2\nd,x,,\n")
    path = str(tmp_path / "a.safetensors")
    loras = [dataset.lora(index) for index in range(4)]
    assert loras == [SampleLora(path, 0.5), SampleLora(path, None), SampleLora(None, 2.0), None]
    assert dataset.has_loras
    assert not any("not used" in note for note in dataset.notes)
    assert [dataset.load(index).prompt for index in range(4)] == ["x"] * 4


def test_another_file_or_scale_makes_other_results(tmp_path: Path) -> None:
    lora_files.peft_with(tmp_path / "a.safetensors")
    texts = ("a,x,a.safetensors,0.5\n", "a,x,,\n", "a,x,a.safetensors,0.6\n")
    one, none, other_scale = (prompts(tmp_path, rows, str(number)) for number, rows in enumerate(texts))
    assert len({dataset.identity(0) for dataset in (one, none, other_scale)}) == 3
    before = one.inputs(0)
    assert before is not None
    assert none.inputs(0) is None
    lora_files.peft_with(tmp_path / "a.safetensors", 1)
    assert one.inputs(0) not in (None, before)


@pytest.mark.parametrize("lora", ["/etc/hosts", "../a.safetensors"])
def test_files_outside_of_the_folder_are_not_read(tmp_path: Path, lora: str) -> None:
    lora_files.peft_with(tmp_path / "a.safetensors")
    (tmp_path / "data").mkdir()
    dataset = prompts(tmp_path / "data", f"a,x,{lora},1\n")
    with pytest.raises(SampleError, match="leads out of the dataset"):
        dataset.load(0)
    assert dataset.inputs(0) is None
