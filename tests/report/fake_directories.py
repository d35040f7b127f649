"""Writes directories of runs and sweeps like those of fluxexp, without running it. Quick, and allows unusual values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fluxexp.address import Address
from fluxexp.config import schema
from fluxexp.data import open_dataset
from fluxexp.records import Record, Sample
from fluxexp.report import write_report

NASTY = (
    '<script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" \'',
    "</script><script>alert(3)</script><!-- <script>",
    "a sunset \U0001f305 over \U0001f468\u200d\U0001f469\u200d\U0001f467 mountains",
    "\u0634\u062c\u0631\u0629 \u062e\u0636\u0631\u0627\u0621 \u0628\u062c\u0627\u0646\u0628",
    "long " * 400,
    "line\u2028separator {{ 7 * 7 }} ${7 * 7} \\u003c \ud800",
)
"""Prompts that could break a page: HTML, scripts, emoji, right-to-left text, long text, and lone surrogates."""
METRICS = ("ssim_hole", "psnr_hole", "blank", "home_made")


def shapes(number: int, side: int = 32) -> dict[str, Any]:
    """Config of the generated dataset, which is always available."""
    size = {"height": side, "width": side}
    return {"kind": "shapes", "length": number, **size, "seed": 0, "limit": None, "placement": "fit"}


def make_samples(number: int, side: int = 32) -> list[Sample]:
    """The samples of the generated dataset."""
    dataset = open_dataset(
        schema.ShapesDatasetConfig(
            kind="shapes",
            length=number,
            height=side,
            width=side,
            seed=0,
            limit=None,
            placement="fit",
            controls=None,
            references=None,
            style=None,
        )
    )
    return [dataset.load(index) for index in range(number)]


def make_run(
    path: Path,
    samples: Sequence[Sample],
    *,
    steps: int = 4,
    guidance: float = 30.0,
    prompts: Sequence[str] = (),
    failed: int = 0,
    ranks: int = 2,
    sweep: str | None = None,
) -> Path:
    """A run over `samples`. With more steps, results are closer to the truth. The last `failed` tasks failed."""
    (path / "images").mkdir(parents=True)
    _write_configs(path, samples, steps, guidance)
    records, scores = [], []
    for index, sample in enumerate(samples):
        is_ok = index < len(samples) - failed
        prompt = prompts[index] if index < len(prompts) else sample.prompt
        record = _record(sample, index, prompt, steps, guidance, is_ok, index % ranks)
        records.append(record.to_json())
        if record.file is not None:
            _result(sample, steps, index).save(path / record.file)
            scores.append(json.dumps({"key": record.key, "metrics": _scores(index, steps), "version": 1}))
    _lines(path / "manifest" / "a.jsonl", records)
    _lines(path / "scores" / "a.jsonl", scores)
    for rank in range(ranks):
        _lines(path / "events" / f"rank-{rank:04d}-20260101T120000.jsonl", _events(rank, len(samples) // ranks))
    summary = _summary(len(samples), failed, steps, ranks, sweep)
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def make_sweep(root: Path, samples: Sequence[Sample], prompts: Sequence[str] = ()) -> Path:
    """A sweep over steps and guidance with four points, and a fifth point that could not start."""
    path = root / "fill-sweep-0123456789abcdef"
    points = []
    for number, (steps, guidance) in enumerate([(1, 1.0), (1, 30.0), (4, 1.0), (4, 30.0)]):
        run = root / f"fill-{number:016x}"
        make_run(run, samples, steps=steps, guidance=guidance, prompts=prompts, sweep=path.name)
        points.append(_point(run.name, steps, guidance, len(samples)))
    broken = {
        "overrides": ["sampling.steps=0"],
        "directory": "fill-gone",
        "status": "failed",
        "error": "no <b>steps</b>",
    }
    path.mkdir()
    content = _summary(4 * len(samples), 0, 4, 2, None) | {
        "name": path.name,
        "num_points": 5,
        "points": [*points, broken],
        "judged_by": "ssim_hole",
        "tolerance": 0.01,
        "reference": 3,
        "answer": {"sentence": "steps 4 is enough & costs <little>.", "best": 3, "cheapest": 2},
        "comparisons": [_comparison(number, 3, samples) for number in range(3)],
    }
    (path / "sweep.json").write_text(json.dumps(content))
    _lines(path / "events" / "rank-0000-20260101T120000.jsonl", _events(0, len(samples)))
    return path


def _write_configs(path: Path, samples: Sequence[Sample], steps: int, guidance: float) -> None:
    side = samples[0].image.width if samples and samples[0].image else 32
    config = {
        "name": "fill",
        "model": {"name": "tiny", "path": "embedded:tiny", "dtype": "float32"},
        "scheduler": {"name": "flow_match_euler", "shift": None},
        "sampling": {"steps": steps, "guidance": guidance, "seed": 0},
        "dataset": shapes(max(1, len(samples)), side),
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "overrides.yaml").write_text(yaml.safe_dump(["+experiment=fill", f"sampling.steps={steps}"]))


def _record(sample: Sample, index: int, prompt: str, steps: int, guidance: float, is_ok: bool, rank: int) -> Record:
    key = f"{sample.key}-{steps}-{guidance:g}"
    return Record(
        key=key,
        sample_key=sample.key,
        status="ok" if is_ok else "failed",
        file=f"images/{key}.png" if is_ok else None,
        error=None if is_ok else "RuntimeError: <b>out</b> of memory",
        prompt=prompt,
        seed=index,
        variant=0,
        steps=steps,
        guidance=guidance,
        height=32,
        width=32,
        covered=1.0,
        rank=rank,
        device="CPU",
        batch_size=1,
        seconds={"denoise": 0.1 * steps},
        attempt=1,
    )


def _result(sample: Sample, steps: int, seed: int) -> Image.Image:
    assert sample.truth is not None
    noise = np.random.default_rng(seed).normal(0, 60 / steps, (sample.truth.height, sample.truth.width, 3))
    return Image.fromarray(np.clip(np.asarray(sample.truth) + noise, 0, 255).astype(np.uint8))


def _scores(index: int, steps: int) -> dict[str, float | None]:
    quality = 1 - 0.4 / steps - 0.01 * index
    return {"ssim_hole": quality, "psnr_hole": 20 * quality, "blank": 0.0, "home_made": None if index == 0 else quality}


def _mean(value: float) -> dict[str, float]:
    return {"mean": value, "low": value - 0.02, "high": value + 0.02, "num": 6}


def _cost(steps: int) -> dict[str, float | None]:
    return {
        "device_s_per_image": 0.1 * steps,
        "images_per_hour_per_device": 36000 / steps,
        "joules_per_image": None,
        "usd_per_image": 0.001 * steps,
    }


def _summary(number: int, failed: int, steps: int, ranks: int, sweep: str | None) -> dict[str, Any]:
    rank = {"device": "CPU", "num_images": number // ranks, "num_failed": 0, "images_per_s": 3.5, "busy_s": 4.0}
    return {
        "version": 1,
        "status": "complete_with_failures" if failed else "complete",
        "num_tasks": number,
        "num_ok": number - failed,
        "num_failed": failed,
        "wall_s": 12.5,
        "images_per_s": 7.0,
        "world_size": ranks,
        "ranks": [{"rank": index, **rank, "error": None} for index in range(ranks)],
        "balance": {"efficiency": 0.9},
        "sweep": sweep,
        "versions": {"fluxexp": "0.1.0"},
        "scores": {name: _mean(1 - 0.4 / steps) for name in METRICS},
        "judged_by": "ssim_hole",
        "cost": _cost(steps),
    }


def _point(directory: str, steps: int, guidance: float, number: int) -> dict[str, Any]:
    quality = 1 - 0.4 / steps + 0.001 * guidance
    return {
        "overrides": ["+experiment=fill", f"sampling.steps={steps}", f"sampling.guidance={guidance:g}"],
        "directory": directory,
        "status": "complete",
        "error": None,
        "num_tasks": number,
        "num_ok": number,
        "num_failed": 0,
        "settings": {"sampling.steps": steps, "sampling.guidance": guidance},
        "quality": {"ssim_hole": _mean(quality), "psnr_hole": _mean(20 * quality), "blank": _mean(0.0)},
        "distance": {"psnr_to_reference": _mean(20 + steps + guidance)} if (steps, guidance) != (4, 30.0) else {},
        "cost": _cost(steps),
        "is_pareto": guidance == 30.0,
    }


def _comparison(point: int, baseline: int, samples: Sequence[Sample]) -> dict[str, Any]:
    difference = {"difference": -0.1, "low": -0.15, "high": -0.05, "win_rate": 0.25, "num_pairs": len(samples)}
    changed = [{"sample_key": sample.key, "variant": 0, "difference": -0.2} for sample in samples[-2:]]
    metrics = {"ssim_hole": difference, "home_made": difference}
    return {"point": point, "baseline": baseline, "num_pairs": 6, "metrics": metrics, "changed_most": changed}


def _events(rank: int, number: int) -> list[str]:
    def line(span: str, start_s: float, end_s: float, **extra: Any) -> str:
        return json.dumps({"span": span, "start_s": 1000 + start_s, "end_s": 1000 + end_s, **extra})

    # Each rank does everything one second later than the rank before.
    lines = [line("load", 0, 2 + rank), line("denoise", 2 + rank, 3 + rank, tasks=0, warmup=True)]
    for index in range(number):
        start_s = 3 + rank + index
        lines.append(line("condition", start_s, start_s + 0.1, tasks=1))
        lines.append(line("denoise", start_s + 0.1, start_s + 0.7, tasks=1))
        lines.append(line("decode", start_s + 0.7, start_s + 0.9, tasks=1))
        lines.append(line("write", start_s + 0.9, start_s + 1.0, tasks=1))
    return lines


def _lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogatepass")


def report_of(path: Path) -> Path:
    """Write the report of the run or sweep in `path`. Returns its file."""
    return write_report(Address.of(path)).local_path()


def island_of(html: str) -> Mapping[str, Any]:
    """The data of the page's scripts."""
    _, _, rest = html.partition('<script type="application/json" id="data">')
    text, _, _ = rest.partition("</script>")
    data: Mapping[str, Any] = json.loads(text)
    return data
