"""Summaries from the results of all ranks and from manifests, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fluxexp.config.schema import ControlNetConfig, FluxModelConfig, ModelConfig
from fluxexp.experiment.failure_reasons import failure_reasons
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.experiment.session_messages import RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.plan import TaskResults
from fluxexp.telemetry import Balance, DeviceFigures, RankLoad, Totals, balance, relative_speeds


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
    figures = rank_figures(own, session_plan.start_s, steals=steals(session_plan))
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
        return {"name": model.name, "path": None, "base": None, "files": None, "commit": None, "variant": None}
    files = ", ".join(f"{name}={file}" for name, file in asdict(model.files).items() if file is not None)
    controlnet = {} if model.controlnet is None else {"controlnet": _controlnet(model.controlnet)}
    return controlnet | {
        "name": model.name,
        "path": model.path,
        "base": model.base,
        "files": files or None,
        "commit": model.revision,
        "variant": model.variant,
    }


def _controlnet(controlnet: ControlNetConfig) -> str | None:
    """The path of a ControlNet, with the commit of one on a hub; None for random weights."""
    path = controlnet.path or None
    return path if controlnet.revision is None else f"{path}@{controlnet.revision}"


def steals(session_plan: SessionPlan) -> bool:
    """Whether the ranks of a session take work from each other."""
    return session_plan.runs[0].plan.config.parallelism.schedule == "steal"


def rank_figures(results: Mapping[int, RankResult], start_s: float, *, steals: bool = True) -> dict[str, Any]:
    """Times, throughput and balance of all ranks. `steals`: whether they take work from each other."""
    ended_s = max(result.finished_s for result in results.values())
    speeds = relative_speeds({rank: result.totals.work_per_s for rank, result in results.items()})
    ranks = [_rank(results[rank], ended_s, speeds.get(rank)) for rank in sorted(results)]
    # A rank without work does not count in the balance.
    loads = [_load(rank, results[rank["rank"]].totals) for rank in ranks if rank["load_s"] or rank["num_images"]]
    return {
        "wall_s": round(ended_s - start_s, 3),
        "images_per_s": _images_per_s(results),
        "warmup_s": round(max((rank["warmup_s"] for rank in ranks), default=0.0), 3),
        "world_size": len(ranks),
        "ranks": ranks,
        "balance": _rounded(balance(loads, steals=steals)),
    }


def _without_idle(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a point without idle times and lost time, because a rank can work on other points of the sweep."""
    ranks = [{**rank, "idle_s": None} for rank in figures["ranks"]]
    slow = [{**rank, "cost_s": None} for rank in figures["balance"]["slow_ranks"]]
    balance = {**figures["balance"], "efficiency": None, "idle_s": None, "slow_ranks": slow}
    return {**figures, "ranks": ranks, "balance": balance}


def _rounded(balance: Balance) -> dict[str, Any]:
    """`balance` with times and speeds to four decimals."""
    idle_s = balance["idle_s"]
    slow = [_four_decimals(rank) for rank in balance["slow_ranks"]]
    return {**balance, "idle_s": None if idle_s is None else round(idle_s, 4), "slow_ranks": slow}


def _four_decimals(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


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


def _load(rank: Mapping[str, Any], totals: Totals) -> RankLoad:
    return RankLoad(
        rank=rank["rank"],
        busy_s=rank["busy_s"],
        wait_s=rank["wait_s"] + rank["steal_s"],
        idle_s=rank["idle_s"],
        num_images=rank["num_images"],
        batch_size=rank["batch_size_mean"],
        work=totals.work,
        work_s=totals.work_s,
    )


def _computed_steps(results: TaskResults) -> float | None:
    """Mean number of full denoiser evaluations per image; None if no record has it."""
    known = results.known("computed_steps")
    return round(float(known.mean()), 3) if len(known) else None


def _cut_prompts(results: TaskResults) -> dict[str, Any] | None:
    """How many images have prompts that T5 or CLIP did not read to their end; None if no record knows it."""
    prompts = _cut_texts(results, "")
    return prompts and {**prompts, "negative": _cut_texts(results, "negative_")}


def _cut_texts(results: TaskResults, prefix: str) -> dict[str, int] | None:
    t5, clip = results.known(f"{prefix}t5_tokens_cut"), results.known(f"{prefix}clip_tokens_cut")
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


def _rank(result: RankResult, ended_s: float, relative_speed: float | None) -> dict[str, Any]:
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
        "work_per_s": totals.work_per_s,
        "relative_speed": relative_speed,
        **_device_values(result.device_figures),
        "lost_telemetry": dict(result.lost_telemetry),
        "error": result.error,
        "idle_s": max(0.0, ended_s - result.finished_s),
        "joules_per_image": _per_image(result.device_figures.energy_j, totals.num_images),
    }
    return _four_decimals(values)


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
