"""The program of docs/dataparallel.md fails as the page says."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import torch
from diffusers import FluxFillPipeline
from PIL import Image

import fluxexp

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dataparallel.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", ["pipeline", "transformer"])
def test_a_wrapped_pipeline_fails_with_the_error_of_the_page(wrapped: str) -> None:
    path = Path(fluxexp.__file__).parent / "embedded" / "tiny_fill"
    pipeline = FluxFillPipeline.from_pretrained(path)
    call = torch.nn.DataParallel(pipeline)
    if wrapped == "pipeline":  # device_ids as with two GPUs: without a GPU, DataParallel only calls the pipeline
        call.device_ids, call.src_device_obj = (
            [0, 1],
            torch.device("cpu"),
        )
    else:
        pipeline.transformer = torch.nn.DataParallel(pipeline.transformer)
        call = pipeline
    picture, mask = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)
    with pytest.raises((TypeError, AttributeError)) as caught:
        call(prompt="a star", image=picture, mask_image=mask, height=64, width=64, num_inference_steps=1)
    assert traceback.format_exception_only(caught.value)[-1].strip() in PAGE
    assert str(caught.value) in (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
