"""Summaries from the results of all ranks and from manifests, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxexp.config.schema import FluxModelConfig, ModelConfig
from fluxexp.experiment.failure_reasons import failure_reasons
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.experiment.session_messages import RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.plan import TaskResults
from fluxexp.telemetry import DeviceFigures, RankLoad, balance


def summarize(session_plan: SessionPlan, number: int, results: Mapping[int, RankResult]) -> dict[str, Any]:
    """The content of a run's `summary.json` (docs/run-directory.md).

    Args:
        session_plan: plan of the session.
        number: number of the run in it.
        results: the result of each rank, by rank.
    """
    run = session_plan.runs[number]
    plan = run.plan
    of_tasks = plan.results()
    num_ok, num_failed = int(of_tasks.is_made.sum()), int(of_tasks.is_failed.sum())
    own = results if session_plan.sweep is None else {rank: result.of_run(number) for rank, result in results.items()}
    figures = rank_figures(own, session_plan.start_s)
    return {
        "status": _status(plan.num_tasks, num_ok, num_failed),
        "name": plan.config.name,
        "fingerprint": plan.fingerprint,
        "model": _model(plan.config.model),
        "num_tasks": plan.num_tasks,
        "num_ok": num_ok,
        "num_failed": num_failed,
        "failure_reasons": failure_reasons(plan, of_tasks),
        "num_resumed": run.num_resumed,
        "computed_steps_mean": _computed_steps(of_tasks),
        "cut_prompts": _cut_prompts(of_tasks),
        "notes": of_tasks.notes(),
        **(figures if session_plan.sweep is None else _without_idle(figures)),
        "sweep": session_plan.sweep.name if session_plan.sweep else None,
        "applied_optimizations": _applied(results, number),
        "skipped_optimizations": _skipped(results, number),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _model(model: ModelConfig) -> dict[str, Any]:
    """Where the weights came from. Rank 0 has replaced the revision of a model on a hub by its commit."""
    if not isinstance(model, FluxModelConfig):
        return {"name": model.name, "path": None, "commit": None, "variant": None}
    return {"name": model.name, "path": model.path, "commit": model.revision, "variant": model.variant}


def rank_figures(results: Mapping[int, RankResult], start_s: float) -> dict[str, Any]:
    """Times, throughput and balance of all ranks."""
    ended_s = max(result.finished_s for result in results.values())
    ranks = [_rank(results[rank], ended_s) for rank in sorted(results)]
    return {
        "wall_s": round(ended_s - start_s, 3),
        "images_per_s": _images_per_s(results),
        "warmup_s": round(max((rank["warmup_s"] for rank in ranks), default=0.0), 3),
        "world_size": len(ranks),
        "ranks": ranks,
        # A rank without work does not count in the balance.
        "balance": balance([_load(rank) for rank in ranks if rank["load_s"] or rank["num_images"]]),
    }


def _without_idle(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a point without idle times, because an idle rank can work on another point of the sweep."""
    ranks = [{**rank, "idle_s": None} for rank in figures["ranks"]]
    return {**figures, "ranks": ranks, "balance": {**figures["balance"], "efficiency": None}}


def _applied(results: Mapping[int, RankResult], number: int) -> list[str]:
    """The optimizations of the rank that applied most of them."""
    applied = [result.runs[number].applied_optimizations for result in results.values() if result.runs]
    most: tuple[str, ...] = max(applied, key=len, default=())
    return list(most)


def _skipped(results: Mapping[int, RankResult], number: int) -> dict[str, str]:
    """Requested optimizations that some rank could not apply, with the reason."""
    skipped: dict[str, str] = {}
    for result in results.values():
        if result.runs:
            skipped |= result.runs[number].skipped_optimizations
    return skipped


def _load(rank: Mapping[str, Any]) -> RankLoad:
    return RankLoad(
        rank=rank["rank"],
        busy_s=rank["busy_s"],
        wait_s=rank["wait_s"] + rank["steal_s"],
        idle_s=rank["idle_s"],
        num_images=rank["num_images"],
        batch_size=rank["batch_size_mean"],
    )


def _computed_steps(results: TaskResults) -> float | None:
    """Mean number of full denoiser evaluations per image; None if no record has it."""
    known = results.known("computed_steps")
    return round(float(known.mean()), 3) if len(known) else None


def _cut_prompts(results: TaskResults) -> dict[str, int] | None:
    """How many images have a prompt that T5 or CLIP did not read to its end; None if no record knows it."""
    t5, clip = results.known("t5_tokens_cut"), results.known("clip_tokens_cut")
    if not len(t5):
        return None
    return {
        "num_t5": int((t5 > 0).sum()),
        "num_clip": int((clip > 0).sum()),
        "most_t5_tokens": int(t5.max()),
    }


def _status(num_tasks: int, num_ok: int, num_failed: int) -> str:
    if num_ok == num_tasks:
        return "complete"
    return "complete_with_failures" if num_ok + num_failed == num_tasks else "incomplete"


def _rank(result: RankResult, ended_s: float) -> dict[str, Any]:
    """An entry of `ranks` (docs/run-directory.md). A rank is idle from its own end to the end of the last rank."""
    totals = result.totals
    values = {
        "rank": result.rank,
        "device": result.device,
        "num_images": totals.num_images,
        "num_failed": totals.num_failed,
        "num_stolen": result.num_stolen,
        "busy_s": totals.busy_s,
        "wait_s": totals.wait_s,
        "steal_s": totals.steal_s,
        "load_s": totals.load_s,
        "warmup_s": totals.warmup_s,
        "stages": {stage: round(seconds, 4) for stage, seconds in totals.stages.items()},
        "batch_size_mean": totals.batch_size_mean,
        "images_per_s": totals.images_per_s,
        **_device_values(result.device_figures),
        "lost_telemetry": dict(result.lost_telemetry),
        "error": result.error,
        "idle_s": max(0.0, ended_s - result.finished_s),
        "joules_per_image": _per_image(result.device_figures.energy_j, totals.num_images),
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _device_values(device: DeviceFigures) -> dict[str, Any]:
    return {
        "utilisation_mean": device.utilization_mean,
        "sm_activity_mean": device.sm_activity_mean,
        "tensor_activity_mean": device.tensor_activity_mean,
        "power_mean_w": device.power_mean_w,
        "energy_j": device.energy_j,
        "temperature_peak_c": device.temperature_peak_c,
        "throttle_reasons": list(device.throttle_reasons),
        "memory_peak_gib": device.memory_peak_gib,
    }


def _per_image(amount: float | None, num_images: int) -> float | None:
    return amount / num_images if amount is not None and num_images else None


def _images_per_s(results: Mapping[int, RankResult]) -> float | None:
    """Images of all ranks divided by the time of the slowest rank, without loading and warm-up."""
    longest_s = max((result.totals.measured_s for result in results.values()), default=0.0)
    num_images = sum(result.totals.num_images for result in results.values())
    return round(num_images / longest_s, 4) if num_images and longest_s > 0 else None


def table(summary: Mapping[str, Any]) -> str:
    """The figures of all ranks as text for a terminal."""
    header = ("rank", "images", "stolen", "failed", "images/s", "busy s", "wait s", "idle s", "use", "GiB", "device")
    rows = [
        (
            str(rank["rank"]),
            str(rank["num_images"]),
            _count(rank["num_stolen"]),
            str(rank["num_failed"]),
            _figure(rank["images_per_s"]),
            _figure(rank["busy_s"]),
            _figure(rank["wait_s"] + rank["steal_s"]),
            _figure(rank["idle_s"]),
            _figure(rank["utilisation_mean"]),
            _figure(rank["memory_peak_gib"]),
            rank["device"],
        )
        for rank in summary["ranks"]
    ]
    lines = (header, *rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    even = summary["balance"]
    if even["imbalance"] is None or len(rows) == 1:
        return text
    return (
        f"{text}\nimbalance {even['imbalance']:.2f} (largest over mean busy time), efficiency {even['efficiency']:.0%}"
    )


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
