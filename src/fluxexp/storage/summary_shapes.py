"""The form of summary.json and sweep.json (docs/run-directory.md), as far as readers rely on it.

A file of another form counts as damaged. Keys can be missing: an older fluxexp did not write all of them.
"""

from __future__ import annotations

from fluxexp.storage.json_shapes import Fields, Shape, anything, by_name, count, each, flag, number, optional, text

_NUMBERS = optional(number)
_MEANS = by_name(Fields({"mean": number, "low": _NUMBERS, "high": _NUMBERS, "num": count}, ("mean",)))
_REASONS = each(Fields({"reason": text, "count": count, "example": optional(text)}, ("reason", "count", "example")))
_BALANCE = Fields(
    {"imbalance": _NUMBERS, "efficiency": _NUMBERS, "straggler": optional(count), "cause": optional(text)}
)
_RANK_NUMBERS = (
    *("busy_s", "wait_s", "steal_s", "idle_s", "load_s", "warmup_s", "batch_size_mean", "images_per_s"),
    *("utilisation_mean", "sm_activity_mean", "tensor_activity_mean", "power_mean_w", "energy_j", "joules_per_image"),
    *("temperature_peak_c", "memory_peak_gib"),
)
_RANKS = each(
    Fields(
        {
            **dict.fromkeys(_RANK_NUMBERS, _NUMBERS),
            "rank": count,
            "device": text,
            "num_images": count,
            "num_failed": count,
            "num_stolen": optional(count),
            "stages": by_name(number),
            "throttle_reasons": each(text),
            "lost_telemetry": by_name(text),
            "error": optional(text),
        },
        ("rank", "num_images", "error"),
    )
)
_TRACKING = Fields(
    {
        "mode": optional(text),
        "run_id": optional(text),
        "directory": optional(text),
        "url": optional(text),
        "dropped": count,
        "error": optional(text),
    }
)
_SESSION: dict[str, Shape] = {
    "version": anything,
    "status": text,
    "name": text,
    "num_tasks": count,
    "num_ok": count,
    "num_failed": count,
    "num_resumed": count,
    "failure_reasons": _REASONS,
    "notes": by_name(count),
    "wall_s": _NUMBERS,
    "images_per_s": _NUMBERS,
    "warmup_s": _NUMBERS,
    "world_size": count,
    "ranks": _RANKS,
    "balance": _BALANCE,
    "judged_by": optional(text),
    "tracking": _TRACKING,
}
"""What a run and a sweep have in common."""
_COST = by_name(_NUMBERS)

SUMMARY = Fields(
    {
        **_SESSION,
        "fingerprint": text,
        "model": by_name(optional(text)),
        "computed_steps_mean": _NUMBERS,
        "cut_prompts": optional(
            Fields(dict.fromkeys(("num_t5", "num_clip", "most_t5_tokens"), count), ("num_t5", "most_t5_tokens"))
        ),
        "sweep": optional(text),
        "applied_optimizations": each(text),
        "skipped_optimizations": by_name(text),
        "versions": by_name(optional(text)),
        "git_revision": optional(text),
        "scores": _MEANS,
        "cost": _COST,
        "scoring": Fields(
            {
                "num_scored": count,
                "num_errors": count,
                "wall_s": number,
                "omitted": by_name(text),
                "error": optional(text),
            }
        ),
    },
    ("status", "num_tasks", "num_ok", "num_failed"),
)
"""Of summary.json."""

_POINT = Fields(
    {
        "overrides": each(text),
        "directory": optional(text),
        "fingerprint": optional(text),
        "status": text,
        "error": optional(text),
        **dict.fromkeys(("num_tasks", "num_ok", "num_failed", "num_resumed", "reference"), optional(count)),
        "settings": by_name(anything),
        "quality": optional(_MEANS),
        "distance": optional(_MEANS),
        "cost": optional(_COST),
        "is_pareto": flag,
    },
    ("status", "directory"),
)
_COMPARISON = Fields(
    {
        "point": count,
        "baseline": count,
        "num_pairs": count,
        "metrics": by_name(
            Fields(
                {"difference": number, "low": _NUMBERS, "high": _NUMBERS, "win_rate": _NUMBERS, "num_pairs": count},
                ("difference",),
            )
        ),
        "changed_most": each(Fields({"sample_key": text, "difference": number}, ("sample_key", "difference"))),
    },
    ("point", "baseline", "metrics"),
)

SWEEP = Fields(
    {
        **_SESSION,
        "num_points": count,
        "tolerance": _NUMBERS,
        "answer": optional(
            Fields({"sentence": text, "best": optional(count), "cheapest": optional(count)}, ("sentence",))
        ),
        "comparisons": each(_COMPARISON),
        "points": each(_POINT),
    },
    ("status", "points"),
)
"""Of sweep.json."""
