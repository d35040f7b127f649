"""The figures of all ranks as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(summary: Mapping[str, Any]) -> str:
    """The figures of all ranks as text for a terminal."""
    header = (
        "rank",
        "images",
        "stolen",
        "failed",
        "images/s",
        "speed",
        "busy s",
        "wait s",
        "idle s",
        "use",
        "GiB",
        "device",
    )
    rows = [
        (
            str(rank["rank"]),
            str(rank["num_images"]),
            _count(rank["num_stolen"]),
            str(rank["num_failed"]),
            _figure(rank["images_per_s"]),
            _figure(rank["relative_speed"]),
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
    figures = (
        f"imbalance {even['imbalance']:.2f} (largest over mean busy time), efficiency {even['efficiency']:.0%}, "
        f"idle {even['idle_s']:.1f} s of all ranks together"
    )
    return "\n".join((text, figures, *map(slow_rank_line, even["slow_ranks"])))


def slow_rank_line(slow: Mapping[str, Any]) -> str:
    """One line about an entry of `balance.slow_ranks`."""
    cost = "" if slow["cost_s"] is None else f"; at their speed the work would have taken {slow['cost_s']:.1f} s less"
    return (
        f"rank {slow['rank']} is slow: it denoises at {slow['relative_speed']:.0%} of the median speed of the other "
        f"ranks{cost}"
    )


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
