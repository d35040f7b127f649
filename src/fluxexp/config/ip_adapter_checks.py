"""Checks the group ip_adapter: the file from its header, the image encoder, and the family. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxexp.config.component_checks import WeightComponent, check_weights
from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES
from fluxexp.config.hub_directories import image_encoder_place
from fluxexp.config.lora_checks import model_shapes
from fluxexp.config.picture_schema import RANDOM
from fluxexp.config.schema import FluxModelConfig, RunConfig
from fluxexp.config.tensor_layouts import NOT_VISION, VISION_PREFIX, clip_vision_layout
from fluxexp.config.weight_headers import ComponentError, Shapes, file_shapes, read_json
from fluxexp.errors import Problem

CLIP_VISION = WeightComponent(
    title="CLIP's image encoder",
    class_name="CLIPVisionModelWithProjection",
    stem="model",
    layout=clip_vision_layout,
    prefix=VISION_PREFIX,
    ignored=NOT_VISION,
)
_PROJECTION = re.compile(r"(?:ip_adapter_proj_model|image_proj)\.((?:proj|norm)\.(?:weight|bias))")
_XLABS = re.compile(r"double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)")
_DIFFUSERS = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.(weight|bias)")
_MANY_TOKENS_ROWS = 65536
_GET_ENCODER = "use the CLIP that the IP-Adapter was trained with, as openai/clip-vit-large-patch14 or its directory"


@dataclass(frozen=True, slots=True)
class IpAdapterTensor:
    """Where a tensor of a file belongs in what diffusers loads."""

    part: str
    """`image_proj` or `ip_adapter`."""
    name: str


def ip_adapter_tensor(name: str) -> IpAdapterTensor | None:
    """The tensor of diffusers that tensor `name` of a file becomes; None if it is not one of an IP-Adapter."""
    if match := _PROJECTION.fullmatch(name):
        return IpAdapterTensor("image_proj", match[1])
    if match := _XLABS.fullmatch(name) or _DIFFUSERS.fullmatch(name):
        return IpAdapterTensor("ip_adapter", f"{match[1]}.to_{match[2]}_ip.{match[3]}")
    return None


def num_picture_tokens(projection_rows: int) -> int:
    """Number of tokens of a picture. As diffusers, by the rows of the projection: 16 for 16 x 4096 rows, else 4."""
    return 16 if projection_rows == _MANY_TOKENS_ROWS else 4


def ip_adapter_layout(blocks: int, width: int, text_width: int, tokens: int, embed_width: int) -> Shapes:
    """Names, as `PART.NAME`, and shapes of all tensors of an IP-Adapter.

    Args:
        blocks: double blocks of the transformer.
        width: of its tokens.
        text_width: of the text tokens that it takes.
        tokens: of a picture.
        embed_width: of CLIP's image embedding.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "image_proj.proj.weight": (tokens * text_width, embed_width),
        "image_proj.proj.bias": (tokens * text_width,),
        "image_proj.norm.weight": (text_width,),
        "image_proj.norm.bias": (text_width,),
    }
    for number in range(blocks):
        for kind in "kv":
            shapes[f"ip_adapter.{number}.to_{kind}_ip.weight"] = (width, text_width)
            shapes[f"ip_adapter.{number}.to_{kind}_ip.bias"] = (width,)
    return shapes


def ip_adapter_fits(config: RunConfig) -> Iterator[Problem]:
    """Check the group ip_adapter."""
    adapter, model, family = config.ip_adapter, config.model, FAMILIES[config.model.family]
    if adapter.path is None:
        for name, off in {"image_encoder": None, "scale": 1.0, "layer_scales": None}.items():
            if getattr(adapter, name) != off:
                hint = f"set ip_adapter.path, or use {'null' if off is None else off}"
                yield Problem(f"ip_adapter.{name}", "has no effect without a path", getattr(adapter, name), hint)
        return
    if not family.takes_ip_adapter or not isinstance(model, FluxModelConfig):
        able = ", ".join(name for name in PIPELINE_FAMILIES if FAMILIES[name].takes_ip_adapter)
        what = f"does not work with model.family={family.name}"
        yield Problem("ip_adapter.path", what, adapter.path, f"use null, or a model of the family {able}")
        return
    is_random = model.weights == RANDOM
    if is_random != (adapter.path == RANDOM):
        what = f"does not work with model.weights={model.weights}"
        yield Problem("ip_adapter.path", what, adapter.path, "use random" if is_random else "use a .safetensors file")
    elif is_random and adapter.image_encoder is not None:
        yield Problem("ip_adapter.image_encoder", "has no effect on random weights", adapter.image_encoder, "use null")
    elif is_random:
        yield from _scale_problems(config, _num_double_blocks(model_shapes(model).get("transformer") or {}))
    else:
        yield from _file_problems(config)


def _file_problems(config: RunConfig) -> Iterator[Problem]:
    adapter = config.ip_adapter
    assert adapter.path is not None
    place = image_encoder_place(adapter)
    if place is None:
        yield Problem("ip_adapter.image_encoder", "must be set", "null", _GET_ENCODER)
        return
    yield from place.problems_of_place()
    if directory := place.find():
        yield from ip_adapter_problems(config, directory)
        return
    try:
        _require_file(Path(adapter.path).expanduser())
    except ComponentError as error:
        yield Problem("ip_adapter.path", str(error), adapter.path, error.hint)


def ip_adapter_problems(config: RunConfig, image_encoder: Path) -> Iterator[Problem]:
    """Check the files of an IP-Adapter, and whether they fit each other and the transformer.

    Args:
        config: with an IP-Adapter.
        image_encoder: directory of its CLIP.
    """
    adapter, model = config.ip_adapter, config.model
    assert adapter.path is not None
    assert isinstance(model, FluxModelConfig)
    try:
        embed_width = check_image_encoder(image_encoder)
    except ComponentError as error:
        yield Problem("ip_adapter.image_encoder", str(error), adapter.image_encoder, error.hint)
        return
    transformer = model_shapes(model).get("transformer")
    try:
        blocks = check_ip_adapter(Path(adapter.path).expanduser(), embed_width, transformer)
    except ComponentError as error:
        yield Problem("ip_adapter.path", str(error), adapter.path, error.hint)
        return
    yield from _scale_problems(config, blocks)


def _scale_problems(config: RunConfig, blocks: int) -> Iterator[Problem]:
    scales = config.ip_adapter.layer_scales
    if scales is not None and len(scales) != blocks:
        what = f"has {len(scales)} values, but the model has {blocks} double blocks"
        yield Problem("ip_adapter.layer_scales", what, scales, "give one value for each, or use null")


def check_image_encoder(directory: Path) -> int:
    """Check the files of a CLIP image encoder.

    Returns:
        the width of its image embedding.

    Raises:
        ComponentError: they are missing or damaged.
    """
    config = read_json(directory / "config.json")
    vision = config.get("vision_config", config)
    if "clip" not in str(vision.get("model_type", config.get("model_type"))):
        raise ComponentError(f"contains a {config.get('model_type')}, not a CLIP", _GET_ENCODER)
    check_weights(directory, CLIP_VISION)
    return int(vision.get("projection_dim", config.get("projection_dim", 512)))


def check_ip_adapter(file: Path, embed_width: int, transformer: Shapes | None) -> int:
    """Check the file of an IP-Adapter without loading it.

    Args:
        file: in safetensors.
        embed_width: of CLIP's image embedding.
        transformer: shapes of its tensors; None if they are not known.

    Returns:
        the number of double blocks that it is for.

    Raises:
        ComponentError: it is missing or damaged, or does not fit.
    """
    _require_file(file)
    shapes = file_shapes(file)
    found = {name: ip_adapter_tensor(name) for name in shapes}
    if unknown := sorted(name for name, tensor in found.items() if tensor is None):
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        reason = f"is not an IP-Adapter for FLUX.1 in a known format: {', '.join(unknown[:3])}{more}"
        raise ComponentError(reason, "use one in the format of XLabs or diffusers")
    own = {f"{tensor.part}.{tensor.name}": shapes[name] for name, tensor in found.items() if tensor is not None}
    expected = _expected(own, embed_width, transformer)
    wrong = sorted(name for name in own.keys() | expected.keys() if own.get(name) != expected.get(name))
    if wrong:
        texts = [
            f"{name} is {list(own[name]) if name in own else 'missing'}"
            + (f" instead of {list(expected[name])}" if name in own and name in expected else "")
            for name in wrong[:3]
        ]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        reason = f"does not fit the model or its image encoder: {'; '.join(texts)}{more}"
        raise ComponentError(reason, "use an IP-Adapter, a CLIP and a model that belong together")
    return sum(name.endswith(".to_k_ip.weight") for name in expected)


def _require_file(file: Path) -> None:
    if file.suffix != ".safetensors" or not file.is_file():
        what = "is not a .safetensors file" if file.exists() else "does not exist"
        raise ComponentError(what, "give the file itself; pickled files can run code and are not read")


def _expected(own: Shapes, embed_width: int, transformer: Shapes | None) -> Shapes:
    """The tensors that the file must have. Without a known transformer, those of its own sizes."""
    rows = own.get("image_proj.proj.weight", (0, 0))[0]
    if transformer is None:
        blocks = sum(name.endswith(".to_k_ip.weight") for name in own)
        width, text_width = own.get("ip_adapter.0.to_k_ip.weight", (0, 0))
    else:
        blocks = _num_double_blocks(transformer)
        width, text_width = transformer["context_embedder.weight"]
    return ip_adapter_layout(blocks, width, text_width, num_picture_tokens(rows), embed_width)


def _num_double_blocks(transformer: Shapes) -> int:
    return sum(re.fullmatch(r"transformer_blocks\.\d+\.attn\.to_q\.weight", name) is not None for name in transformer)
