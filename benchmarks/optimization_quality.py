"""Measures what every approximate optimization costs, on the trained embedded models (docs/optimization.md).

One sweep makes the same samples with the same noise, with and without each option, at several steps and batch sizes.
Then the code of `python -m fluxexp.gate` compares each run with the lossless run of the same steps and batch size:
PSNR and SSIM in the masked region (or in the whole image), and the samples whose result no longer follows the prompt.
LPIPS needs weights that are not part of fluxexp, so it is not measured.

    python benchmarks/optimization_quality.py [--samples 48] [--steps 8,16,28] [--batch-sizes 1,4,16] [--all]
        [--models tiny_fill,tiny_dev] [--options fast,fp8_linears] [--dtype bfloat16] [--json FILE]

`python benchmarks/quality_table.py FILE` prints such a file as Markdown.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from quality_table import text

from fluxexp.address import Address
from fluxexp.cli.compose import check_command
from fluxexp.cli.exit import leave_process_group
from fluxexp.cli.location import MAIN_CONFIG, config_directory
from fluxexp.config import RunConfig, check
from fluxexp.errors import FluxexpError, RankError
from fluxexp.experiment import Outcome, SweepPoint, run_sweep
from fluxexp.experiment.calibration import calibrate
from fluxexp.experiment.planner import has_gpu
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.gate import GateResult, check_gate
from fluxexp.gate.gate_metrics import gate_metric
from fluxexp.storage.sweep_directory import SweepDirectory

REFERENCE = "lossless"
LOSSLESS = ("optimization=lossless",)
OPTIONS: Mapping[str, Sequence[str]] = {
    "none": ("optimization=none",),
    "fast": ("optimization=fast",),
    "fp8_linears": ("optimization=fast", "optimization/step_cache=none"),
    "fp8_attention": ("optimization=fast", "optimization/step_cache=none", "optimization.fp8_attention=true"),
    "attention_backend=sage": (*LOSSLESS, "optimization.attention_backend=sage"),
    "text_encoder_weights=int8": (*LOSSLESS, "optimization.text_encoder_weights=int8"),
    "text_encoder_weights=fp8": (*LOSSLESS, "optimization.text_encoder_weights=fp8"),
    "vae_tiling": (*LOSSLESS, "optimization.vae_tiling=true"),
    "step_cache=first_block": (*LOSSLESS, "optimization/step_cache=first_block"),
    "step_cache=taylorseer": (*LOSSLESS, "optimization/step_cache=taylorseer"),
    "step_cache=magcache": (*LOSSLESS, "optimization/step_cache=magcache"),
}
"""Every approximate option, alone and in `fast`. `fp8_linears` is `fast` without its step cache. `none` shows the
rounding that is there without any of them."""
EXPERIMENTS = {"tiny_fill": ("+experiment=fill",), "tiny_dev": ("+experiment=text_to_image",)}
PSNR_LIMIT_DB = 30.0
"""The smallest mean PSNR that passes: our choice, between visible and invisible differences."""
_METRICS = (
    gate_metric("adherence", None),
    gate_metric("ssim_to_reference", None),
    gate_metric("psnr_to_reference", PSNR_LIMIT_DB),
)
_CALIBRATION_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """What one run of the sweep uses."""

    model: str
    option: str
    steps: int
    batch_size: int


def main() -> None:
    """Run the sweep, print a table, and write the figures to the file given by `--json`."""
    args = _arguments()
    on_gpu = has_gpu("auto")
    dtype = args.dtype or ("bfloat16" if on_gpu else "float32")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = str(Path(directory) / "cache")  # the ratios of MagCache are measured anew
        os.chdir(directory)
        with nullcontext() if args.verbose else redirect_stdout(io.StringIO()):
            points = _points(args, dtype)
            outcomes = _run(list(points.values()))
        rows = _rows(dict(zip(points, outcomes, strict=True)))
        leave_process_group()
    wall_s = time.perf_counter() - start
    report: dict[str, Any] = {"samples": args.samples, "dtype": dtype, "device": _device(on_gpu), "wall_s": wall_s}
    report |= {"reference": REFERENCE, "psnr_limit_db": PSNR_LIMIT_DB, "rows": rows}
    report |= {"git_revision": git_revision(), "versions": versions()}
    print("\n".join(text(report)))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    def names_of(known: Mapping[str, object]) -> Callable[[str], list[str]]:
        def names(text: str) -> list[str]:
            if unknown := [name for name in text.split(",") if name not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]} is unknown; known: {', '.join(known)}")
            return text.split(",")

        return names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=48, help="samples per run")
    parser.add_argument("--steps", type=numbers, default=[8, 16, 28])
    parser.add_argument("--batch-sizes", type=numbers, default=[1, 4, 16])
    parser.add_argument("--all", action="store_true", help="all combinations of steps and batch sizes")
    parser.add_argument("--models", type=names_of(EXPERIMENTS), default=list(EXPERIMENTS), help="embedded models")
    parser.add_argument("--options", type=names_of(OPTIONS), default=list(OPTIONS), help="only these options")
    parser.add_argument("--dtype", help="of the model; default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--verbose", action="store_true", help="show the output of the sweep")
    parser.add_argument("--json", type=lambda text: Path(text).resolve(), help="file for the figures")
    return parser.parse_args()


def _points(args: argparse.Namespace, dtype: str) -> dict[Setting, SweepPoint]:
    """The points of the sweep. A point whose options are not available has the error."""
    points = {}
    for model, option in product(args.models, [REFERENCE, *args.options]):
        overrides = [*EXPERIMENTS[model], f"model={model}", f"model.dtype={dtype}"]
        overrides += ["dataset=shapes_many", f"dataset.limit={args.samples}", "tracking=disabled", "report=off"]
        overrides += OPTIONS[option] if option != REFERENCE else LOSSLESS
        if option == "step_cache=magcache":
            plain = check_command(config_directory(), MAIN_CONFIG, [*overrides, "optimization/step_cache=none"], False)
            config = replace(plain.config, sampling=replace(plain.config.sampling, steps=max(args.steps)))
            calibrate(config, _CALIBRATION_SAMPLES)
        for setting in (Setting(model, option, *numbers) for numbers in _numbers(args)):
            points[setting] = _point(setting, overrides)
    return points


def _numbers(args: argparse.Namespace) -> list[tuple[int, int]]:
    """Steps and batch sizes of the runs: all steps with the middle batch size, and all batch sizes with the middle
    number of steps; all combinations with `--all`."""
    if args.all:
        return list(product(args.steps, args.batch_sizes))
    middle = args.steps[len(args.steps) // 2], args.batch_sizes[len(args.batch_sizes) // 2]
    return [pair for pair in product(args.steps, args.batch_sizes) if middle[0] == pair[0] or middle[1] == pair[1]]


def _run(points: Sequence[SweepPoint]) -> list[Outcome]:
    """Run the sweep. If a model cannot be loaded with an option, its points have the error, and the others run."""
    root = Address.of("quality")
    try:
        return run_sweep(points, root)
    except RankError:
        (sweep,) = (SweepDirectory(Address.of(path)) for path in Path("quality").glob("*-sweep-*"))
        values = sweep.reader.values()
    assert values is not None
    made = {tuple(point["overrides"]): point for point in values["points"]}
    return [_outcome(sweep, made[tuple(point.overrides)]) for point in points]


def _outcome(sweep: SweepDirectory, point: Mapping[str, Any]) -> Outcome:
    run = sweep.run_of(point)
    if run is None or not point["num_ok"]:
        return Outcome.failed(sweep.address, point["error"] or "no images")
    return Outcome.of(run.address, run.reader.summary() or {"status": point["status"]})


def _point(setting: Setting, overrides: Sequence[str]) -> SweepPoint:
    changes = [f"sampling.steps={setting.steps}", f"sampling.batch_size={setting.batch_size}"]
    # Runs that differ only in the batch size have one fingerprint, so their names must differ.
    changes.append(f"name={setting.model}_batch_{setting.batch_size}")
    try:
        config = _config(tuple(overrides))
        sampling = replace(config.sampling, steps=setting.steps, batch_size=setting.batch_size)
        config = replace(config, name=f"{setting.model}_batch_{setting.batch_size}", sampling=sampling)
        check(config)
    except FluxexpError as error:
        return SweepPoint([*overrides, *changes], None, error)
    return SweepPoint([*overrides, *changes], config)


@cache
def _config(overrides: Sequence[str]) -> RunConfig:
    return check_command(config_directory(), MAIN_CONFIG, list(overrides), multirun=False).config


def _rows(outcomes: Mapping[Setting, Outcome]) -> list[dict[str, Any]]:
    """For each setting with an option its distance from the lossless run, or why it could not run."""
    rows = []
    for setting, outcome in outcomes.items():
        if setting.option == REFERENCE:
            continue
        reference = outcomes[replace(setting, option=REFERENCE)]
        row: dict[str, Any] = {**asdict(setting), "skipped": _why_skipped(outcome)}
        if row["skipped"] is None:
            row |= _figures(check_gate(outcome.address, reference.address, _METRICS))
            row["computed_steps"] = outcome.summary.get("computed_steps_mean")
        rows.append(row)
    return rows


def _why_skipped(outcome: Outcome) -> str | None:
    if outcome.error is not None:
        return " ".join(outcome.error.split())
    if outcome.summary.get("num_ok"):
        return None
    return next(
        (" ".join(str(rank["error"]).split()) for rank in outcome.summary["ranks"] if rank["error"]), "no images"
    )


def _figures(result: GateResult) -> dict[str, Any]:
    flips, ssim, psnr = result.metrics
    assert ssim.worst is not None
    assert psnr.worst is not None
    return {
        "verdict": result.verdict,
        "identical": result.identical,
        "num_pairs": len(result.runs.pairs),
        "psnr_mean": psnr.value,
        "psnr_worst": psnr.worst.candidate,
        "psnr_verdict": psnr.verdict,
        "ssim_mean": ssim.value,
        "ssim_worst": ssim.worst.candidate,
        "ssim_verdict": ssim.verdict,
        "adherence": flips.candidate_mean,
        "adherence_reference": flips.reference_mean,
        "flips_to_wrong": flips.num_worse,
        "flips_to_right": flips.num_better,
        "adherence_verdict": flips.verdict,
        "num_samples_needed": flips.num_samples_needed,
    }


def _device(on_gpu: bool) -> str:
    if not on_gpu:
        return f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    import torch

    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
