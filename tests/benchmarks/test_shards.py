"""The benchmark of images in files and in shards."""

import json
import sys
from pathlib import Path

import pytest
import shards


def test_both_layouts_are_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--images", "20", "--bytes", "100", "--root", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["shards.py", *arguments])
    shards.main()
    assert "20 images of 100 bytes" in capsys.readouterr().out
    files, tars = json.loads((tmp_path / "figures.json").read_text())["layouts"]
    assert (files["num_files"], tars["num_files"]) == (21, 2)
