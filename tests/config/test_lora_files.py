"""LoRA files are judged by their headers, before torch is imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fluxexp.config import check, fingerprint, fingerprint_payload
from fluxexp.config.lora_files import lora_header
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.tensor_layouts import flux_layout
from fluxexp.config.weight_headers import ComponentError
from fluxexp.errors import ConfigError
from tests import lora_files
from tests.conftest import Compose

FLUX = ("model=flux_dev", "output.paste=false")
CONTROL = ("model=flux_control", "dataset=shapes_outlines", "output.paste=false")
DEV = ("model=tiny_dev", "dataset=prompts", "dataset.path=PROMPTS", "output.paste=false")


@pytest.fixture
def dev(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "prompts.txt").write_text("a star\n")
    return tuple(word.replace("PROMPTS", str(tmp_path / "prompts.txt")) for word in DEV)


def test_the_format_and_the_layers_are_found(tmp_path: Path) -> None:
    kohya = lora_header(lora_files.kohya(tmp_path / "kohya.safetensors", text=True))
    assert kohya.format == "kohya"
    assert kohya.changes_text
    merged = kohya.layers["transformer.transformer_blocks.0.attn.add_v_proj"]
    assert (merged.inputs, merged.outputs, merged.rank) == (160, 160, 4)
    assert "text_encoder.encoder.layers.1.mlp.fc1" in kohya.layers
    assert len(kohya.ignored) == 1  # diffusers loses the attention of CLIP, if the file has its MLPs, too
    xlabs = lora_header(lora_files.xlabs(tmp_path / "xlabs.safetensors"))
    assert xlabs.format == "xlabs"
    assert xlabs.layers["transformer.single_transformer_blocks.3.proj_out"].inputs == 800
    bfl = lora_header(lora_files.bfl_control(tmp_path / "bfl.safetensors"))
    assert bfl.format == "bfl"
    assert bfl.layers["transformer.single_transformer_blocks.0.proj_mlp"].outputs == 4 * 3072
    assert bfl.norms["transformer_blocks.3.attn.norm_added_k.weight"] == (128,)


def test_tensors_that_diffusers_ignores_are_listed(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(4, 160),
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(160, 4),
        "lora_unet_img_in.lora_down.weight": torch.ones(4, 64),
        "lora_unet_img_in.lora_up.weight": torch.ones(160, 4),
    }
    header = lora_header(lora_files.save(tmp_path / "a.safetensors", tensors))
    assert list(header.layers) == ["transformer.transformer_blocks.0.attn.to_out.0"]
    assert len(header.ignored) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [("unet.down_blocks.0.lora_A.weight", "known format"), ("transformer.x_embedder.dora_scale", "DoRA"),
     ("transformer.x_embedder.lokr_w1", "LoKr"), ("transformer.x_embedder.lora_A.weight", "known format")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    path = lora_files.save(tmp_path / "a.safetensors", {name: torch.ones(4, 4)})
    with pytest.raises(ComponentError, match=reason):
        lora_header(path)


def test_missing_damaged_and_pickled_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="No such file"):
        lora_header(str(tmp_path / "missing.safetensors"))
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ComponentError, match=r"not a \.safetensors file"):
        lora_header(str(tmp_path / "a.bin"))
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ComponentError, match="damaged or truncated"):
        lora_header(str(tmp_path / "a.safetensors"))


def test_a_lora_must_fit_the_model(compose: Compose, dev: tuple[str, ...], tmp_path: Path) -> None:
    tensors = {
        "transformer.x_embedder.lora_A.weight": torch.ones(4, 128),
        "transformer.x_embedder.lora_B.weight": torch.ones(160, 4),
    }
    path = lora_files.save(tmp_path / "control.safetensors", tensors)
    with pytest.raises(ConfigError, match=r"lora\.path=.*x_embedder has 64 inputs and 160 outputs, the LoRA 128"):
        check(compose(*dev, f"lora.path={path}"))


@pytest.mark.parametrize("layout", ["flux_dev", "flux_fill", "flux_control"])
def test_an_8_step_lora_for_dev_fits_at_full_size(compose: Compose, layout: str, tmp_path: Path) -> None:
    """FLUX.1-Turbo-Alpha and Hyper-FLUX.1-dev-8steps have all layers, so x_embedder, too: it is padded on Fill."""
    shapes = flux_layout(LAYOUTS["flux_dev"].transformer)
    assert shapes is not None
    path = lora_files.full_size_header(tmp_path / "8steps.safetensors", shapes)
    header = lora_header(path)
    assert header.layers["transformer.x_embedder"].inputs == 64
    assert not header.ignored
    assert len(header.layers) == 19 * 14 + 38 * 6 + 10
    family = {"flux_dev": FLUX, "flux_fill": (), "flux_control": CONTROL}[layout]
    check(compose(*family, "model.weights=random", f"model.layout={layout}", "model.path=", f"lora.path={path}"))


@pytest.mark.parametrize("layout", ["flux_fill", "small_fill"])
def test_a_lora_must_fit_random_weights(compose: Compose, layout: str, tmp_path: Path) -> None:
    """Their layout is known without a file, so no model is made before the answer."""
    model = ("model.weights=random", f"model.layout={layout}", "model.path=")
    path = lora_files.peft_with(tmp_path / "a.safetensors")
    width = LAYOUTS[layout].transformer["attention_head_dim"] * LAYOUTS[layout].transformer["num_attention_heads"]
    with pytest.raises(ConfigError, match=rf"lora\.path=.*to_q has {width} inputs and {width} outputs, the LoRA 160"):
        check(compose(*model, f"lora.path={path}"))
    tensors = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, width),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(width, 4),
    }
    check(compose(*model, f"lora.path={lora_files.save(tmp_path / 'b.safetensors', tensors)}"))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("lora.path=[A,A]", "lora.scale=[1,2,3]"), "has 3 values, but lora.path has 2"),
        (("lora.scale=0.5",), "has no effect without lora.path"),
        (("lora.path=A", "model=fake"), "has no weights"),
    ],
)
def test_lora_keys_must_agree(
    compose: Compose, dev: tuple[str, ...], tmp_path: Path, overrides: tuple[str, ...], text: str
) -> None:
    path = lora_files.peft_with(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=text):
        check(compose(*dev, *(word.replace("A", path) for word in overrides)))


def test_the_fingerprint_has_the_content_of_a_lora_and_not_its_path(
    compose: Compose, dev: tuple[str, ...], tmp_path: Path
) -> None:
    paths = [lora_files.peft_with(tmp_path / f"{name}.safetensors") for name in "ab"]
    other = lora_files.peft_with(tmp_path / "c.safetensors", 1)
    one, same, changed = (fingerprint(compose(*dev, f"lora.path={path}")) for path in (*paths, other))
    assert one == same != changed
    assert fingerprint(compose(*dev, f"lora.path={paths[0]}", "lora.scale=0.5")) not in (one, changed)
    assert fingerprint(compose(*dev, f"lora.path=[{paths[0]}]", "lora.scale=[1.0]")) == one
    assert "lora" not in fingerprint_payload(compose(*dev))
    json.dumps(fingerprint_payload(compose(*dev, f"lora.path={paths[0]}")))


def test_a_control_lora_is_refused_on_fill(compose: Compose) -> None:
    """Its weights of the control image would be those of the masked image on Fill."""
    with pytest.raises(ConfigError, match="the LoRA has 128, for another family"):
        check(compose("model=tiny_fill", "lora=tiny_control"))
    check(compose("model=tiny_control", "dataset=shapes_outlines", "lora=tiny_control", "output.paste=false"))
