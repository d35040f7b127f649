from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from PIL import Image

from fluxexp.config import RunConfig
from fluxexp.records import Record
from fluxexp.storage.image_files import encode_image
from fluxexp.worker.generation_parameters import _quoted, generation_parameters

RECORD = Record(
    key="k", sample_key="s", status="ok", file=None, error=None, prompt="ein Stern ★", seed=2**63 - 1, variant=0,
    steps=8, guidance=3.5, height=None, width=None, covered=None, rank=0, device="cpu", batch_size=1, seconds={},
    attempt=1,
)  # fmt: skip
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""With this expression the web UI reads the last line (`re_param` in modules/infotext_utils.py)."""


def test_the_web_ui_reads_prompt_and_settings(compose: Callable[..., RunConfig]) -> None:
    text = generation_parameters(RECORD, compose("+experiment=fill"), (48, 32))
    assert text == (
        "ein Stern ★\nSteps: 8, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: 3.5, "
        "Seed: 9223372036854775807, Size: 48x32, Model: tiny_fill"
    )
    assert dict(SETTING.findall(text.splitlines()[-1]))["Model"] == "tiny_fill"


def test_negative_prompt_and_strength(compose: Callable[..., RunConfig]) -> None:
    record = replace(RECORD, negative_prompt="blurry, dark", true_cfg_scale=2.5)
    config = compose("+experiment=img2img", "scheduler=dpmsolver_singlestep", "sampling.strength=0.6")
    lines = generation_parameters(record, config, (48, 32)).splitlines()
    assert lines[1] == "Negative prompt: blurry, dark"
    settings = dict(SETTING.findall(lines[2]))
    assert settings["CFG scale"] == "2.5"
    assert settings["Sampler"] == "dpmsolver_singlestep"
    assert settings["Denoising strength"] == "0.6"


def test_values_with_separators_are_quoted() -> None:
    assert _quoted("a, b: c") == '"a, b: c"'
    assert _quoted("1024x768") == "1024x768"


@pytest.mark.parametrize("text", ["plain\nSteps: 4", "★ 星\nSteps: 4"])
def test_a_png_file_has_the_chunk_beside_our_own(text: str) -> None:
    data = encode_image(Image.new("RGB", (8, 8)), "png", 90, {"prompt": "x"}, None, text)
    info = Image.open(io.BytesIO(data)).info
    assert info["parameters"] == text
    assert info["fluxexp"] == '{"prompt": "x"}'
    assert "parameters" not in Image.open(io.BytesIO(encode_image(Image.new("RGB", (8, 8)), "png", 90, {}))).info
