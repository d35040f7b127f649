"""The figures of each session of a run, which stay in its summary when a later session continues the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fluxexp.storage.run_reader import RunReader

MAX_SESSIONS = 50
"""The summary has the latest sessions, at most this number. The stream in the run's store has all of them."""
_OF_SESSION = ("status", "interrupted", "stopped", "wall_s", "images_per_s", "warmup_s", "world_size")
_OF_RANK = ("rank", "device", "num_images", "num_failed", "busy_s", "energy_j", "error")


def session_entry(session: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of the session whose figures `summary` has."""
    ranks = [{key: rank[key] for key in _OF_RANK} for rank in summary["ranks"]]
    energies_j = [rank["energy_j"] for rank in ranks if rank["energy_j"] is not None]
    return {
        "session": session,
        **{key: summary[key] for key in _OF_SESSION},
        "num_images": sum(rank["num_images"] for rank in ranks),
        "num_failed": sum(rank["num_failed"] for rank in ranks),
        "energy_j": math.fsum(energies_j) if energies_j else None,
        "ranks": ranks,
    }


def with_sessions(reader: RunReader, session: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """`summary` with the entries of the sessions before this one, and of this one at the end."""
    return {**summary, "sessions": [*reader.sessions(), session_entry(session, summary)][-MAX_SESSIONS:]}
