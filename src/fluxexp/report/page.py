"""Renders templates, styles, scripts and data into one self-contained HTML file. It knows nothing about runs.

User text reaches the page in two ways. Jinja2 escapes the text in templates. The data for scripts is JSON in a
`<script>` element (a data island), and `island` escapes every character that could end this element. A content
security policy stops the page from loading anything but images beside it, and from running any script but its own: it
lists the hashes of the scripts and styles. Vega evaluates expressions with its interpreter instead of `eval`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from fluxexp.report.bundle import plotting_library

if TYPE_CHECKING:
    from jinja2 import Environment

_SCRIPTS = ("dom.js", "charts.js", "zoom.js", "viewer.js", "gallery.js", "grid.js", "start.js")
_STYLES = ("page.css", "pictures.css")
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """The HTML page.

    Args:
        template: file name of the Jinja2 template.
        data: values for the page's scripts, in the data island. If it has `charts`, the page includes the plotting
            library.
        values: values for the template.
    """
    from markupsafe import Markup

    library = plotting_library() if data.get("charts") else ""
    return (
        _environment()
        .get_template(template)
        .render(
            values,
            data_island=Markup(island(data)),
            plotting_library=Markup(library),
            scripts=Markup(_page_script()),
            styles=Markup(_page_style()),
            script_hashes=Markup(" ".join(map(_hash_source, filter(None, (library, _page_script()))))),
            style_hashes=Markup(_hash_source(_page_style())),
        )
    )


def encode(html: str) -> bytes:
    """The page as UTF-8. Lone surrogates (from file names that are not UTF-8) become question marks."""
    return html.encode("utf-8", "replace")


def island(data: Any) -> str:
    """`data` as JSON that is safe inside a script element. Non-finite numbers become null."""
    text = json.dumps(_finite(data), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(part) for part in value]
    return value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from fluxexp.report import wording

    environment = Environment(
        loader=PackageLoader("fluxexp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": wording.number, "setting": wording.setting}
    return environment


@cache
def _page_script() -> str:
    body = "\n".join(_asset(name) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}\n}})();'


@cache
def _page_style() -> str:
    return "\n".join(_asset(name) for name in _STYLES)


@cache
def _hash_source(text: str) -> str:
    """What the policy calls an inline script or style with this text. The browser runs no other one."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _asset(name: str) -> str:
    return (resources.files("fluxexp.report") / "assets" / name).read_text(encoding="utf-8")
