"""Vega, Vega-Lite and Vega-Embed as one script, from `vl-convert-python`, which carries them: no network.

Putting them together takes a second or two, so the text is kept for the process and in the user's cache directory.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from fluxexp.storage.atomic import write_atomically

_END = "window.vegaEmbed=vegaEmbed;"
"""The snippet exports what the page calls, and nothing else."""


@cache
def plotting_library() -> str:
    """The script's text, which can stand in a script element."""
    kept = _cache_file()
    with suppress(OSError, ValueError):  # not there, or damaged: made again
        if text := kept.read_text(encoding="utf-8"):
            return text
    text = _bundle()
    with suppress(OSError):  # a home that cannot be written to costs the next process a second
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, text)
    return text


def _bundle() -> str:
    import vl_convert

    text: str = vl_convert.javascript_bundle(_END)
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _cache_file() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 (never raises)
    return root / "fluxexp" / f"vega-{version('vl-convert-python')}.js"
