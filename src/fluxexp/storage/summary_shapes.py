"""The form of summary.json and sweep.json (docs/run-directory.md), as far as readers rely on it.

A file of another form counts as damaged. Keys can be missing: an older fluxexp did not write all of them.
"""

from __future__ import annotations

from fluxexp.storage.json_shapes import ByName, Each, Fields, Optional, Shape, anything, count, flag, number, text

_NUMBERS = Optional(number)
_MEANS = ByName(Fields({"mean": number, "low": _NUMBERS, "high": _NUMBERS, "num": count}, ("mean",)))
_REASONS = Each(Fields({"reason": text, "count": count, "example": Optional(text)}, ("reason", "count", "example")))
_BALANCE = Fields(
    {
        **dict.fromkeys(("imbalance", "efficiency", "idle_s"), _NUMBERS),
        "straggler": Optional(count),
        "cause": Optional(text),
        "slow_ranks": Each(
            Fields({"rank": count, "relative_speed": number, "cost_s": _NUMBERS}, ("rank", "relative_speed"))
        ),
    }
)
_RANK_NUMBERS = (
    *("busy_s", "wait_s", "steal_s", "idle_s", "load_s", "warmup_s", "batch_size_mean", "images_per_s"),
    *("work_per_s", "relative_speed"),
    *("utilisation_mean", "sm_activity_mean", "tensor_activity_mean", "power_mean_w", "energy_j", "joules_per_image"),
    *("temperature_peak_c", "memory_peak_gib"),
)
_RANKS = Each(
    Fields(
        {
            **dict.fromkeys(_RANK_NUMBERS, _NUMBERS),
            "rank": count,
            "device": text,
            "num_images": count,
            "num_failed": count,
            "num_stolen": Optional(count),
            "stages": ByName(number),
            "throttle_reasons": Each(text),
            "lost_telemetry": ByName(text),
            "error": Optional(text),
        },
        ("rank", "num_images", "error"),
    )
)
_TRACKING = Fields(
    {
        "mode": Optional(text),
        "run_id": Optional(text),
        "directory": Optional(text),
        "url": Optional(text),
        "dropped": count,
        "error": Optional(text),
    }
)
SESSION_ENTRY = Fields(
    {
        "session": text,
        "status": text,
        "interrupted": flag,
        "stopped": Optional(text),
        "wall_s": _NUMBERS,
        "images_per_s": _NUMBERS,
        "warmup_s": _NUMBERS,
        "world_size": count,
        "num_images": count,
        "num_failed": count,
        "energy_j": _NUMBERS,
        "ranks": _RANKS,
    },
    ("session", "ranks"),
)
"""Of an entry of `sessions`, and of a line of sessions.jsonl."""
_SESSION: dict[str, Shape] = {
    "version": anything,
    "status": text,
    "name": text,
    "num_tasks": count,
    "num_ok": count,
    "num_failed": count,
    "num_resumed": count,
    "failure_reasons": _REASONS,
    "notes": ByName(count),
    "wall_s": _NUMBERS,
    "images_per_s": _NUMBERS,
    "warmup_s": _NUMBERS,
    "world_size": count,
    "ranks": _RANKS,
    "balance": _BALANCE,
    "judged_by": Optional(text),
    "tracking": _TRACKING,
    "interrupted": flag,
    "stopped": Optional(text),
    "sessions": Each(SESSION_ENTRY),
}
"""What a run and a sweep have in common."""
_COST = ByName(_NUMBERS)

SUMMARY = Fields(
    {
        **_SESSION,
        "fingerprint": text,
        "model": ByName(Optional(text)),
        "computed_steps_mean": _NUMBERS,
        "cut_prompts": Optional(
            Fields(
                {
                    **dict.fromkeys(("num_t5", "num_clip", "most_t5_tokens"), count),
                    "negative": Optional(Fields(dict.fromkeys(("num_t5", "num_clip", "most_t5_tokens"), count))),
                },
                ("num_t5", "most_t5_tokens"),
            )
        ),
        "sweep": Optional(text),
        "applied_optimizations": Each(text),
        "skipped_optimizations": ByName(text),
        "versions": ByName(Optional(text)),
        "git_revision": Optional(text),
        "scores": _MEANS,
        "cost": _COST,
        "scoring": Fields(
            {
                "num_scored": count,
                "num_errors": count,
                "wall_s": number,
                "omitted": ByName(text),
                "error": Optional(text),
            }
        ),
    },
    ("status",),
)
"""Of summary.json."""

_POINT = Fields(
    {
        "overrides": Each(text),
        "directory": Optional(text),
        "fingerprint": Optional(text),
        "status": text,
        "error": Optional(text),
        **dict.fromkeys(("num_tasks", "num_ok", "num_failed", "num_resumed", "reference"), Optional(count)),
        "settings": ByName(anything),
        "quality": Optional(_MEANS),
        "distance": Optional(_MEANS),
        "cost": Optional(_COST),
        "is_pareto": flag,
    },
    ("status", "directory"),
)
_COMPARISON = Fields(
    {
        "point": count,
        "baseline": count,
        "num_pairs": count,
        "metrics": ByName(
            Fields(
                {
                    "difference": number,
                    **dict.fromkeys(("low", "high", "win_rate"), _NUMBERS),
                    **dict.fromkeys(("num_ties", "num_pairs"), count),
                },
                ("difference",),
            )
        ),
        "changed_most": Each(Fields({"sample_key": text, "difference": number}, ("sample_key", "difference"))),
    },
    ("point", "baseline", "metrics"),
)
_VERDICT = Fields(
    {
        "point": count,
        "verdict": text,
        **dict.fromkeys(("rival", "num_samples_needed"), Optional(count)),
        "bound": _NUMBERS,
        "num_samples": count,
    },
    ("point", "verdict"),
)
_GROUP = Fields(
    {
        **dict.fromkeys(("reference", "closest", "cheapest"), count),
        "decided": flag,
        "ties": Each(count),
        "sentence": text,
    },
    ("reference", "sentence"),
)

SWEEP = Fields(
    {
        **_SESSION,
        "num_points": count,
        "tolerance": _NUMBERS,
        "answer": Optional(
            Fields(
                {
                    **dict.fromkeys(("best", "cheapest"), Optional(count)),
                    "sentence": text,
                    "decided": flag,
                    "ties": Each(count),
                    "verdicts": Each(_VERDICT),
                    "groups": Each(_GROUP),
                },
                ("sentence",),
            )
        ),
        "warnings": Each(text),
        "comparisons": Each(_COMPARISON),
        "points": Each(_POINT),
    },
    ("status", "points"),
)
"""Of sweep.json."""
