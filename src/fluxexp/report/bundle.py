"""Bundles Vega, Vega-Lite and Vega-Embed into one script from `vl-convert-python`, without network access.

Bundling takes one or two seconds, so the text is cached in the process and in the user's cache directory.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from fluxexp.config.user_cache import cache_directory
from fluxexp.storage.atomic import write_atomically

_EXPORT = "window.vegaEmbed=vegaEmbed;"
"""JavaScript that exports the only function that the page calls."""


@cache
def plotting_library() -> str:
    """The text of the bundled script. It is safe to place inside a `<script>` element."""
    cached = _cache_file()
    with suppress(OSError, ValueError):  # a missing or damaged cache file: bundle again
        if text := cached.read_text(encoding="utf-8"):
            return text
    text = _bundle()
    with suppress(OSError):  # if the cache is not writable, the next process bundles again
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, text)
    return text


def _bundle() -> str:
    import vl_convert

    text: str = vl_convert.javascript_bundle(_EXPORT)
    # "</script" would end the element that contains the text; "<!--" would start a comment in it.
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _cache_file() -> Path:
    return cache_directory() / f"vega-{version('vl-convert-python')}.js"
