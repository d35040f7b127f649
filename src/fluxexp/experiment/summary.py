"""The run's summary from what its ranks reported and the manifest holds; as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxexp.experiment.agreement import Agreement
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.telemetry import RankLoad, balance

_RANK_FIELDS = (
    "rank",
    "device",
    "num_images",
    "num_failed",
    "busy_s",
    "wait_s",
    "load_s",
    "warmup_s",
    "images_per_s",
    "utilisation_mean",
    "memory_peak_gib",
    "error",
)


def summarise(agreement: Agreement, results: Mapping[int, Mapping[str, Any]], ended_s: float) -> dict[str, Any]:
    """What `summary.json` says (docs/run-directory.md).

    Args:
        agreement: the run.
        results: what each rank said at its end, by rank.
        ended_s: when the last of them ended, seconds since the epoch.
    """
    plan = agreement.plan
    outcomes = plan.directory.outcomes()
    records = [record for task in plan.tasks(range(plan.num_tasks)) if (record := outcomes.get(task.key))]
    num_ok = sum(record.status == "ok" for record in records)
    num_failed = len(records) - num_ok
    ranks = [_rank(results[rank], ended_s) for rank in sorted(results)]
    loads = [RankLoad(rank=r["rank"], busy_s=r["busy_s"], wait_s=r["wait_s"]) for r in ranks]
    return {
        "status": _status(plan.num_tasks, num_ok, num_failed),
        "name": plan.config.name,
        "fingerprint": plan.fingerprint,
        "num_tasks": plan.num_tasks,
        "num_ok": num_ok,
        "num_failed": num_failed,
        "num_resumed": agreement.num_resumed,
        "wall_s": round(ended_s - agreement.start_s, 3),
        "images_per_s": _images_per_s(results),
        "warmup_s": round(max((r["warmup_s"] for r in ranks), default=0.0), 3),
        "world_size": len(ranks),
        "ranks": ranks,
        "balance": balance(loads),
        "applied_optimizations": max((r["applied_optimizations"] for r in results.values()), key=len, default=[]),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _status(num_tasks: int, num_ok: int, num_failed: int) -> str:
    if num_ok == num_tasks:
        return "complete"
    return "complete_with_failures" if num_ok + num_failed == num_tasks else "incomplete"


def _rank(result: Mapping[str, Any], ended_s: float) -> dict[str, Any]:
    """One rank's figures; what it waited includes the time from its own end to that of the last rank."""
    waited_s = result["wait_s"] + max(0.0, ended_s - result["finished_s"])
    values = {name: result[name] for name in _RANK_FIELDS} | {"wait_s": waited_s}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _images_per_s(results: Mapping[int, Mapping[str, Any]]) -> float | None:
    """Images of all ranks over the time of the rank that took longest, loading and warm-up left out."""
    longest_s = max((r["busy_s"] + r["wait_s"] - r["warmup_s"] for r in results.values()), default=0.0)
    num_images = sum(r["num_images"] for r in results.values())
    return round(num_images / longest_s, 4) if num_images and longest_s > 0 else None


def table(summary: Mapping[str, Any]) -> str:
    """The ranks' figures for a terminal."""
    header = ("rank", "images", "failed", "images/s", "busy s", "wait s", "utilisation", "memory GiB", "device")
    rows = [
        (
            str(rank["rank"]),
            str(rank["num_images"]),
            str(rank["num_failed"]),
            _figure(rank["images_per_s"]),
            _figure(rank["busy_s"]),
            _figure(rank["wait_s"]),
            _figure(rank["utilisation_mean"]),
            _figure(rank["memory_peak_gib"]),
            rank["device"],
        )
        for rank in summary["ranks"]
    ]
    lines = (header, *rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
