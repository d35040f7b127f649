"""The text that Stable Diffusion web UI (AUTOMATIC1111) and Forge write into the PNG chunk `parameters`.

Many viewers and archives of images show and search it, and the web UI takes prompt and settings from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from fluxexp.config import RunConfig
from fluxexp.records import Record

_SAMPLERS: Mapping[str, str] = {
    "flow_match_euler": "Euler",
    "flow_match_heun": "Heun",
    "flow_match_lcm": "LCM",
    "dpmsolver_multistep": "DPM++ 2M",
    "unipc": "UniPC",
    "deis": "DEIS",
}
"""Names of the web UI. A scheduler that it does not have keeps its own name."""


def generation_parameters(record: Record, config: RunConfig, size: tuple[int, int]) -> str:
    """The parameters of an image: prompt, negative prompt if there is one, and a line of settings.

    `CFG scale` is the true CFG scale. Forge calls the guidance of FLUX `Distilled CFG Scale`.

    Args:
        record: of the image.
        config: of its run.
        size: width and height of the file, in pixels.
    """
    settings = {
        "Steps": record.steps,
        "Sampler": _SAMPLERS.get(config.scheduler.name, config.scheduler.name),
        "CFG scale": f"{record.true_cfg_scale:g}",
        "Distilled CFG Scale": f"{record.guidance:g}",
        "Seed": record.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": config.model.name,
    }
    if config.sampling.strength < 1:
        settings["Denoising strength"] = f"{config.sampling.strength:g}"
    lines = [record.prompt or ""]
    if record.negative_prompt:
        lines.append(f"Negative prompt: {record.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """The value as JSON text if it has a separator of the line, as the web UI does."""
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
