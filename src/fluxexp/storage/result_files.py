"""Names of the files and streams of a run and of a sweep (docs/run-directory.md). All other code imports them."""

from __future__ import annotations

import re
from typing import NamedTuple

FINGERPRINT = "fingerprint.json"
CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
SUMMARY = "summary.json"
SWEEP = "sweep.json"
REPORT = "report.html"
CONTACT_SHEET = "contact_sheet.png"
IMAGES = "images/"
MANIFEST = "manifest/"
SHARDS = "shards/"
EVENTS = "events/"
ATTEMPTS = "attempts/"
PROCESS_DEATHS = "process_deaths.json"
SESSIONS = "sessions.jsonl"
ENGINE_MARKER = "engine_marker"
"""Written by the process that leads a session, for workers that must see the same store. It exists while they work."""
SCORES = "scores/"
SET_SCORES = f"{SCORES}sets.json"

_EVENTS = re.compile(rf"{EVENTS}rank-(?P<rank>\d+)-(?P<session>.+)\.jsonl")


class RankSession(NamedTuple):
    """One rank in one session."""

    rank: int
    session: str


def image_key(task_key: str, image_format: str) -> str:
    """Key of the image file of a task."""
    return f"{IMAGES}{task_key}.{image_format}"


def shard_key(shard: str) -> str:
    """Key of a tar with images. `shard` is a hash of its content."""
    return f"{SHARDS}{shard}.tar"


def shard_part_key(shard: str) -> str:
    """Key of the records of a shard, which are written after its tar: a tar without them does not count."""
    return f"{SHARDS}{shard}.parquet"


def features_key(extractor: str, task_key: str) -> str:
    """Key of the file with the features of a task's image by one extractor."""
    return f"{SCORES}features/{extractor}/{task_key}.npz"


def events_stream(rank: int, session: str) -> str:
    """Key of the stream for the events of one rank in one session."""
    return f"{EVENTS}rank-{rank:04d}-{session}.jsonl"


def parse_events_stream(stream: str) -> RankSession | None:
    """Inverse of `events_stream`; None for another name."""
    match = _EVENTS.fullmatch(stream)
    return RankSession(int(match["rank"]), match["session"]) if match else None


def sibling_link(name: str, key: str = "") -> str:
    """Relative URL from a page of one run or sweep to `key` of the run or sweep `name` beside it."""
    return f"../{name}/{key}"
