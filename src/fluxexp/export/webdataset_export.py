"""Tars in the layout of webdataset: `KEY.png`, `KEY.txt` (the prompt) and `KEY.json` (all other values)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fluxexp.export.exported_rows import ExportedRow, ExportedRows
from fluxexp.storage.tar_members import END, tar_member

_TAR_BYTES = 256 << 20


def write_webdataset(rows: ExportedRows, folder: Path) -> int:
    """Write `shard-NNNNNN.tar` into `folder`. Returns the number of rows."""
    num_rows = num_tars = 0
    members = map(_members, rows.rows())
    first = next(members, None)
    while first is not None:
        with (folder / f"shard-{num_tars:06d}.tar").open("wb") as tar:
            tar.write(first)
            num_rows += 1 + _fill(tar, members)
            tar.write(END)
            tar.flush()
            os.fsync(tar.fileno())
        num_tars += 1
        first = next(members, None)
    return num_rows


def _fill(tar: BinaryIO, members: Iterator[bytes]) -> int:
    """Write members until the tar is large enough. Returns the number of rows."""
    num_rows = 0
    while tar.tell() < _TAR_BYTES and (content := next(members, None)) is not None:
        tar.write(content)
        num_rows += 1
    return num_rows


def _members(row: ExportedRow) -> bytes:
    key = row.record.key
    members = [] if row.image is None else [tar_member(f"{key}.{row.suffix}", row.image)]
    if isinstance(prompt := row.values.get("prompt"), str):
        members.append(tar_member(f"{key}.txt", prompt.encode(errors="replace")))
    text = json.dumps(dict(row.values), ensure_ascii=False)
    return b"".join((*members, tar_member(f"{key}.json", text.encode(errors="replace"))))
