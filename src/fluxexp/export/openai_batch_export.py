"""Results in the form of an OpenAI batch: one JSON line for each task, with the `custom_id` of its request.

`results.jsonl` has the images, and `errors.jsonl` the failed tasks, as OpenAI's output file and error file.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from fluxexp.export.exported_rows import ExportedRow, ExportedRows

_IMAGES = "images"
_SERVER_ERROR = 500


def write_openai_batch(rows: ExportedRows, folder: Path, *, inline: bool) -> int:
    """Write the two files, and images/KEY.png unless images are `inline` as base64. Returns the number of lines."""
    num_rows = 0
    if "images" in rows.parts and not inline:
        (folder / _IMAGES).mkdir()
    with (folder / "results.jsonl").open("wb") as results, (folder / "errors.jsonl").open("wb") as errors:
        for row in rows.rows(with_failed=True):
            is_ok = row.record.status == "ok"
            line = (
                _line(row, 200, _body(row, folder, inline=inline)) if is_ok else _line(row, _SERVER_ERROR, _fault(row))
            )
            (results if is_ok else errors).write(f"{json.dumps(line, ensure_ascii=False)}\n".encode(errors="replace"))
            num_rows += 1
    return num_rows


def _line(row: ExportedRow, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": row.record.key, "body": body}
    return {
        "id": f"batch_req_{row.record.key}",
        "custom_id": row.record.sample_key,
        "response": response,
        "error": None,
    }


def _body(row: ExportedRow, folder: Path, *, inline: bool) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if row.image is not None and inline:
        data["b64_json"] = base64.b64encode(row.image).decode()
    elif row.image is not None:
        data["file"] = f"{_IMAGES}/{row.record.key}.{row.suffix}"
        (folder / data["file"]).write_bytes(row.image)
    if "prompt" in row.values:
        data["revised_prompt"] = row.values["prompt"]
    size = {"size": f"{row.record.width}x{row.record.height}", "output_format": row.suffix}
    return {"data": [data], **size, **_values(row)}


def _fault(row: ExportedRow) -> dict[str, Any]:
    return {"error": {"message": row.record.error, "type": "server_error", "code": "task_failed"}, **_values(row)}


def _values(row: ExportedRow) -> dict[str, Any]:
    left_out = ("key", "sample_key", "prompt")
    return {name: value for name, value in row.values.items() if name not in left_out}
