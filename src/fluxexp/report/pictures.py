"""Converts results and their samples to the data that the page's scripts show: text, numbers and thumbnails.

A missing or damaged picture is replaced by the reason. Several threads decode images, because decoders release the GIL.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from PIL import Image

from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.records import Record, Sample
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.run_data import is_number
from fluxexp.report.thumbnails import Thumbnails, fitting
from fluxexp.report.wording import setting
from fluxexp.storage.run_reader import RunReader
from fluxexp.transparency import over_white

BUDGET = 7_600_000
"""Target size of all thumbnails and prompts of a page, in bytes."""
_PROBES = 8
"""Number of results from which the size of a thumbnail is estimated."""
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Result:
    """A record, with its run and scores."""

    record: Record
    run: RunReader
    link: str
    """Relative URL from the page to the run's directory: empty, or ending with a slash."""
    scores: Mapping[str, float | None]
    point: int | None = None
    """Number of the sweep's point, on the page of a sweep."""

    @property
    def file(self) -> str | None:
        """Path of the image, relative to the run's directory; None if the record has no image inside that directory."""
        file = self.record.file
        if self.record.status != "ok" or not isinstance(file, str) or not _is_inside(file):
            return None
        return file


def as_data(results: Sequence[Result], samples: Samples) -> dict[str, Any]:
    """`results` and their samples as JSON values, with thumbnails as data URIs.

    Returns:
        `samples` by key, `results` in their order, and `side`: the longer side of the thumbnails in pixels. Prompts and
        thumbnails together take about `BUDGET` bytes at most.
    """
    keys = list(dict.fromkeys(result.record.sample_key for result in results))
    prompts = {result.record.sample_key: result.record.prompt for result in results}
    prompt_bytes = sum(len(str(text).encode("utf-8", "replace")) for text in prompts.values())
    thumbnails = _thumbnails(results, samples, keys, BUDGET - prompt_bytes)
    with ThreadPoolExecutor(_THREADS) as pool:
        shown = dict(zip(keys, pool.map(lambda key: _sample(samples, key, thumbnails), keys), strict=True))
        made = list(pool.map(lambda result: _result(result, thumbnails), results))
    for key, sample in shown.items():
        sample["prompt"] = prompts[key]
    for result in made:
        if result["prompt"] == prompts[result["sample"]]:
            del result["prompt"]  # the sample already has it
    return {"samples": shown, "results": made, "side": thumbnails.side}


def missing_pictures(data: Mapping[str, Any]) -> list[str]:
    """Sentences about the pictures that are missing in `data`, a value of `as_data`."""
    images = [result["problem"] for result in data["results"] if result.get("problem")]
    inputs = [sample["problem"] for sample in data["samples"].values() if sample.get("problem")]
    notes = [f"Images that cannot be shown: {len(images)}. First reason: {images[0]}."] if images else []
    if inputs:
        notes.append(f"Samples whose inputs cannot be shown: {len(inputs)}. First reason: {inputs[0]}.")
    return notes


def _thumbnails(results: Sequence[Result], samples: Samples, keys: Sequence[str], budget: int) -> Thumbnails:
    """Thumbnails of a size that fits `budget`.

    The estimate assumes that pictures of samples compress like results, and that every sample has the same kinds of
    pictures as the first one. Masks do not count, because they are small.
    """
    made = [result for result in results if result.file is not None]
    step = max(1, len(made) // _PROBES)
    probes = [image for result in made[::step] if isinstance(image := _read(result), Image.Image)]
    first = samples.load(keys[0]) if keys else ""
    parts = [] if isinstance(first, str) else [first.image, first.control_image, *first.references[:1], first.truth]
    per_sample = sum(part is not None for part in parts)
    return fitting(probes[:_PROBES], len(made) + per_sample * len(keys), max(budget, BUDGET // 4))


def _sample(samples: Samples, key: str, thumbnails: Thumbnails) -> dict[str, Any]:
    if (key, thumbnails.side) not in samples.thumbnails:
        samples.thumbnails[key, thumbnails.side] = _sample_data(samples.load(key), thumbnails)
    return dict(samples.thumbnails[key, thumbnails.side])


def _sample_data(sample: Sample | str, thumbnails: Thumbnails) -> dict[str, Any]:
    if isinstance(sample, str):
        return {"problem": sample}
    return {
        "input": None if sample.image is None else thumbnails.picture(sample.image),
        "control": None if sample.control_image is None else thumbnails.picture(sample.control_image),
        "reference": thumbnails.picture(sample.references[0]) if sample.references else None,
        "mask": None if sample.mask is None else thumbnails.mask(sample.mask),
        "truth": None if sample.truth is None else thumbnails.picture(sample.truth),
    }


def _result(result: Result, thumbnails: Thumbnails) -> dict[str, Any]:
    record = result.record
    image = _read(result)
    values: dict[str, Any] = {
        "key": record.key,
        "sample": record.sample_key,
        "prompt": record.prompt,
        "status": "ok" if record.status == "ok" else "failed",
        "variant": record.variant,
        "rank": record.rank,
        "scores": dict(result.scores),
        "facts": _facts(record),
    }
    if isinstance(image, Image.Image):
        values["image"] = thumbnails.picture(image)
        values["file"] = result.link + quote(str(record.file))
    elif record.status == "ok":
        values["problem"] = image
    optional = {"error": record.error, "point": result.point}
    return values | {name: value for name, value in optional.items() if value is not None}


def _facts(record: Record) -> list[tuple[str, str]]:
    seconds = record.seconds if isinstance(record.seconds, Mapping) else {}
    stages = " \u00b7 ".join(
        f"{stage} {value:.3g} s" for stage, value in seconds.items() if is_number(value) and value >= 5e-4
    )
    size = f"{record.width} \u00d7 {record.height} px" if record.width and record.height else None
    facts: Iterable[tuple[str, Any]] = (
        ("Sample", record.sample_key),
        ("Image index", record.variant if record.variant else None),
        ("Steps", record.steps),
        ("Guidance", setting(record.guidance)),
        ("True CFG", setting(record.true_cfg_scale) if record.true_cfg_scale != 1 else None),
        ("Negative prompt", record.negative_prompt),
        ("Prompt of T5", record.prompt_2),
        ("Seed", record.seed),
        ("Size", size),
        ("Painted part of mask", record.covered if record.covered not in (None, 1) else None),
        ("Made by", f"rank {record.rank}, {record.device}"),
        ("Time", stages or None),
        ("Attempt", record.attempt if record.attempt != 1 else None),
    )
    return [(name, str(value)) for name, value in facts if value is not None]


def _read(result: Result) -> Image.Image | str:
    """The picture, or the reason why there is none."""
    if result.file is None:
        return "its record does not name a file inside the run's directory"
    name = PurePosixPath(result.file).name
    try:
        content = result.run.image(result.file)
        if content is None:
            return f"{name} no longer exists"
        with Image.open(io.BytesIO(content), formats=RESULT_FORMATS) as image:
            return over_white(image)
    except Exception as error:  # decoders raise many kinds of errors for damaged data
        return f"{name} cannot be read ({error})"


def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts
