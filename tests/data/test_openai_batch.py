"""Requests of OpenAI's batch API as a table."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from tests.data.making import config_error, keys_of, noise, prompts, sample_error, spot, table


def request(name: str, url: str = "/v1/images/generations", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "m", **body}}


def lines(path: Path, *requests: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in requests))
    return path


def data_url(picture: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, "png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def test_generations_are_prompts(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "batch.jsonl",
        request("a", prompt="a cat", size="1024x1536", n=1),
        request("b", prompt="a dog", size="auto", quality="high"),
        request("c", "/v1/chat/completions", prompt="a bird"),
        request("d"),
    )
    dataset = prompts(file)
    assert keys_of(dataset) == ["a", "b", "unreadable", "d"]
    sample = dataset.load(0)
    assert (sample.prompt, sample.size) == ("a cat", (1536, 1024))
    assert dataset.load(1).size is None
    assert "'/v1/chat/completions'" in sample_error(dataset, 2)
    assert "has no prompt" in sample_error(dataset, 3)
    assert dataset.notes == ["3 columns not used: body.model, body.n, body.quality"]


def test_edits_have_pictures(tmp_path: Path) -> None:
    edits = "/v1/images/edits"
    image, mask = data_url(noise(32, 32)), data_url(spot(32, 32, (0, 0, 8, 8)))
    file = lines(
        tmp_path / "batch.jsonl",
        request("a", edits, prompt="p", images=[{"image_url": image}], mask={"image_url": mask}),
        request("b", edits, prompt="p", image=image, mask=mask),
        request("c", edits, prompt="p", images=[{"file_id": "file-1"}]),
        request("d", edits, prompt="p", images=[{"image_url": image}, {"image_url": image}], mask=mask),
    )
    dataset = table(file)
    for index in range(2):
        sample = dataset.load(index)
        assert sample.image is not None
        assert sample.mask is not None
        assert sample.mask.getbbox() == (0, 0, 8, 8)
    assert "file_id is on OpenAI's servers" in sample_error(dataset, 2)
    assert "image has 2 paths" in sample_error(dataset, 3)


def test_a_custom_id_occurs_once(tmp_path: Path) -> None:
    file = lines(tmp_path / "batch.jsonl", request("a", prompt="p"), request("a", prompt="q"))
    assert "has the key 'a' in rows 1 and 2" in config_error(prompts, file)
