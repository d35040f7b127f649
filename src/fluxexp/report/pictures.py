"""Results and their samples as what a page's scripts show: words, figures, and thumbnails in the page itself.

A picture that is gone or damaged is a reason in its place. Reads on several threads, as decoders let go of Python.
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

from fluxexp.records import Record, Sample
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.run_data import is_number
from fluxexp.report.thumbnails import Thumbnails, fitting
from fluxexp.report.wording import setting
from fluxexp.storage.run_reader import RunReader

BUDGET = 7_600_000
"""Bytes of all thumbnails and prompts of a page."""
_PROBES = 8
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Result:
    """A record, and where its run is."""

    record: Record
    run: RunReader
    link: str
    """From the page to the run's directory: empty, or ending with a slash."""
    scores: Mapping[str, float | None]
    point: int | None = None

    @property
    def file(self) -> str | None:
        """The image, if the record names one inside of the run's directory."""
        file = self.record.file
        if self.record.status != "ok" or not isinstance(file, str) or not _is_inside(file):
            return None
        return file


def as_data(results: Sequence[Result], samples: Samples) -> dict[str, Any]:
    """`results` and their samples with thumbnails, in JSON's types; together not much above `BUDGET` bytes."""
    keys = list(dict.fromkeys(result.record.sample_key for result in results))
    prompts = {result.record.sample_key: result.record.prompt for result in results}
    words = sum(len(str(text).encode("utf-8", "replace")) for text in prompts.values())
    thumbnails = _thumbnails(results, samples, keys, BUDGET - words)
    with ThreadPoolExecutor(_THREADS) as pool:
        shown = dict(zip(keys, pool.map(lambda key: _sample(samples, key, thumbnails), keys), strict=True))
        made = list(pool.map(lambda result: _result(result, thumbnails), results))
    for key, sample in shown.items():
        sample["prompt"] = prompts[key]
    for result in made:
        if result["prompt"] == prompts[result["sample"]]:
            del result["prompt"]
    return {"samples": shown, "results": made, "side": thumbnails.side}


def missing_pictures(data: Mapping[str, Any]) -> list[str]:
    """What of `as_data` could not be shown, in sentences."""
    gone = [result for result in data["results"] if result.get("why")]
    reasons = {sample["why"]: key for key, sample in data["samples"].items() if sample.get("why")}
    notes = [f"{len(gone)} of the images cannot be shown, the first: {gone[0]['why']}."] if gone else []
    if reasons:
        count = sum(bool(sample.get("why")) for sample in data["samples"].values())
        notes.append(f"Inputs of {count} samples cannot be shown: {next(iter(reasons))}.")
    return notes


def _thumbnails(results: Sequence[Result], samples: Samples, keys: Sequence[str], budget: int) -> Thumbnails:
    """Pictures of samples are taken to be like some of the results, and all samples to have what the first one has."""
    made = [result for result in results if result.file is not None]
    step = max(1, len(made) // _PROBES)
    probes = [image for result in made[::step] if isinstance(image := _read(result), Image.Image)]
    first = samples.load(keys[0]) if keys else ""
    per_sample = 0 if isinstance(first, str) else sum(part is not None for part in (first.image, first.truth))
    return fitting(probes[:_PROBES], len(made) + per_sample * len(keys), max(budget, BUDGET // 4))


def _sample(samples: Samples, key: str, thumbnails: Thumbnails) -> dict[str, Any]:
    if (key, thumbnails.side) not in samples.thumbnails:
        samples.thumbnails[key, thumbnails.side] = _sample_data(samples.load(key), thumbnails)
    return dict(samples.thumbnails[key, thumbnails.side])


def _sample_data(sample: Sample | str, thumbnails: Thumbnails) -> dict[str, Any]:
    if isinstance(sample, str):
        return {"why": sample}
    return {
        "input": None if sample.image is None else thumbnails.picture(sample.image),
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
        values["why"] = image
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
        ("Variant", record.variant if record.variant else None),
        ("Steps", record.steps),
        ("Guidance", setting(record.guidance)),
        ("Seed", record.seed),
        ("Size", size),
        ("Covered", record.covered if record.covered not in (None, 1) else None),
        ("Made by", f"rank {record.rank}, {record.device}"),
        ("Time", stages or None),
        ("Attempts", record.attempt if record.attempt != 1 else None),
    )
    return [(name, str(value)) for name, value in facts if value is not None]


def _read(result: Result) -> Image.Image | str:
    """The picture, or why there is none."""
    if result.file is None:
        return "its record names no file"
    name = PurePosixPath(result.file).name
    try:
        content = result.run.image(result.file)
        if content is None:
            return f"{name} does not exist any more"
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise anything on damaged data
        return f"{name} cannot be read ({error})"


def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts
