"""The requests of OpenAI's batch API as rows of a table: one JSON object per line, with `custom_id` and `body`.

The format is that of https://platform.openai.com/docs/guides/batch, for /v1/images/generations and /v1/images/edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENDPOINTS = ("/v1/images/generations", "/v1/images/edits")
_USED = ("prompt", "size", "image", "images", "mask")


class RequestError(ValueError):
    """A request is not one for an image."""


def is_request(row: Mapping[str, Any]) -> bool:
    """Whether a line is a request of the batch API."""
    return "custom_id" in row and isinstance(row.get("body"), dict)


def as_row(request: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a request. Keys of the body that fluxexp does not use have names such as `body.quality`.

    Raises:
        RequestError: the request is not for an image, or names files on OpenAI's servers.
    """
    url = request.get("url")
    if url is not None and url not in ENDPOINTS:
        raise RequestError(f"has the url {url!r}; use {' or '.join(ENDPOINTS)}")
    body = request["body"]
    size = body.get("size")
    row = {
        "key": request["custom_id"],
        "prompt": body.get("prompt"),
        "size": None if size == "auto" else size,
        "image": _picture(body.get("image") or body.get("images"), "image"),
        "mask": _picture(body.get("mask"), "mask"),
    }
    return row | {f"body.{name}": value for name, value in body.items() if name not in _USED}


def _picture(value: Any, name: str) -> Any:
    """The URL, data URL or path of a picture; a list with one of them, or a mapping with `image_url`, counts as it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        if "image_url" not in value:
            raise RequestError(f"has {name} without image_url; a file_id is on OpenAI's servers: use a URL or data URL")
        value = value["image_url"]
        if isinstance(value, dict):
            value = value.get("url")
    return [_picture(each, name) for each in value] if isinstance(value, list) else value
