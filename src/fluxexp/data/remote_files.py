"""Reads files behind URLs through fsspec. Nothing is imported before a URL is used.

s3, gs and az use the clients and the settings of `fluxexp.object_clients`, https needs aiohttp, and hf is the hub of
Hugging Face.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fluxexp.errors import SampleError, StorageError
from fluxexp.object_clients import make_client
from fluxexp.object_errors import as_os_errors

_OBJECTS = ("s3", "gs", "az")
_PACKAGES = {
    **dict.fromkeys(_OBJECTS, ("obstore", "s3")),
    **dict.fromkeys(("http", "https"), ("aiohttp", "urls")),
    "hf": ("huggingface_hub", "urls"),
    "memory": ("fsspec", "urls"),
}
"""The package that a scheme needs, and the extra of fluxexp that installs it."""
SCHEMES = tuple(_PACKAGES)
MAX_FILE_BYTES = 1 << 30
"""A larger file behind a URL is not read into memory."""
_BLOCK_BYTES = 1 << 16
_TIMEOUT_S = 60.0
_PASSING_STATUS = frozenset({408, 425, 429})


def scheme_of(url: str) -> str:
    """The scheme of a URL, in lower case."""
    return url.partition("://")[0].lower()


def url_problem(url: str) -> tuple[str, str] | None:
    """Why a URL cannot be read, whatever the server says: what is wrong, and the remedy. None if nothing is wrong."""
    scheme = scheme_of(url)
    if scheme not in _PACKAGES:
        return f"has the unknown scheme {scheme!r}", f"use one of {', '.join(f'{name}://' for name in SCHEMES)}"
    if "::" in url:
        return "is a chain of URLs", "use the URL of the file itself"
    if ".." in urlsplit(url).path.split("/"):
        return "contains '..'", "write the URL without it"
    package, extra = _PACKAGES[scheme]
    if find_spec(package) is None:
        return f"needs {package}, which is not installed", f"pip install 'fluxexp[{extra}]'"
    return None


def read_url(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes `start` to `end` of a file; None: from its beginning, to its end.

    Raises:
        SampleError: the URL cannot be read, or the file has more than 1 GiB.
        OSError: the server does not give the file. An error that may pass is a ConnectionError or a TimeoutError.
    """
    _require_usable(url)
    if start is None and end is None:
        size = _facts(url).get("size")
        if isinstance(size, int) and size > MAX_FILE_BYTES:
            raise SampleError(f"{url}: has {size} bytes, more than {MAX_FILE_BYTES}; use smaller files")
    with _as_os_errors(url):
        return bytes(_file_system(url).cat_file(url, start=start, end=end))


def file_version(url: str) -> str | None:
    """What the server says of the version of a file: its ETag, else size and time. None if it does not say enough.

    Raises:
        SampleError, OSError: as `read_url`.
    """
    facts = _facts(url)
    lowered = {str(name).lower().replace("_", "-"): value for name, value in facts.items()}
    for name in ("etag", "e-tag", "checksum", "md5", "blob-id", "oid"):
        if lowered.get(name):
            return f"{name}:{lowered[name]}"
    for name in ("last-modified", "lastmodified", "mtime", "updated", "created"):
        if lowered.get(name) is not None:
            return f"{lowered.get('size')}:{lowered[name]}"
    return None


def file_size(url: str) -> int | None:
    """Size in bytes; None if the server does not say it. Raises SampleError, OSError as `read_url`."""
    size = _facts(url).get("size")
    return size if isinstance(size, int) else None


@contextmanager
def opened_url(url: str) -> Generator[BinaryIO]:
    """A stream that can seek, and reads only the blocks that are used. Raises SampleError, OSError as `read_url`."""
    _require_usable(url)
    with _as_os_errors(url), _file_system(url).open(url, "rb", block_size=_BLOCK_BYTES, cache_type="readahead") as file:
        yield file


def download(url: str, target: str) -> None:
    """Write a file behind a URL to the local path `target`. Raises SampleError, OSError as `read_url`."""
    _require_usable(url)
    with _as_os_errors(url):
        _file_system(url).get_file(url, target)


def list_files(url: str, suffix: str) -> list[str]:
    """The URLs of the files in a folder whose names end with `suffix`, sorted. Raises as `read_url`."""
    _require_usable(url)
    with _as_os_errors(url):
        names = _file_system(url).ls(url, detail=False)
    scheme = scheme_of(url)
    urls = (name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in map(str, names))
    return sorted(name for name in urls if name.endswith(suffix))


@lru_cache(maxsize=4096)
def _facts(url: str) -> dict[str, Any]:
    """What the server says of a file. Asked once: `inputs`, then the sample itself need it."""
    _require_usable(url)
    with _as_os_errors(url):
        return dict(_file_system(url).info(url))


def _require_usable(url: str) -> None:
    if problem := url_problem(url):
        raise SampleError(f"{url}: {problem[0]}; {problem[1]}")


@cache
def _of_scheme(scheme: str) -> Any:
    import fsspec

    if scheme not in _OBJECTS:
        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=_TIMEOUT_S)}
        return fsspec.filesystem(scheme, **options)
    from obstore.fsspec import FsspecStore

    class _Objects(FsspecStore):  # type: ignore[misc, unused-ignore]
        """FsspecStore with the clients of this project."""

        def _construct_store(self, bucket: str) -> Any:
            return make_client(scheme, bucket)

    return _Objects(scheme)  # type: ignore[call-overload, unused-ignore]


def _file_system(url: str) -> Any:
    return _of_scheme(scheme_of(url))


@contextmanager
def _as_os_errors(url: str) -> Generator[None]:
    """Raise an OSError for each error of a file system, so that `passing_trouble.py` judges it."""
    try:
        if scheme_of(url) in _OBJECTS:
            with as_os_errors(url):
                yield
        else:
            yield
    except (OSError, SampleError):
        raise
    except StorageError as error:
        raise SampleError(f"{url}: {error}") from error
    except Exception as error:  # of aiohttp and huggingface_hub, which have types of their own
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            if status >= 500 or status in _PASSING_STATUS:
                raise ConnectionError(f"the server answered {status}") from error
            if status in (401, 403):
                raise PermissionError(f"access denied ({status})") from error
            raise OSError(f"the server answered {status}") from error
        if type(error).__module__.partition(".")[0] in ("aiohttp", "httpx", "httpcore", "requests", "urllib3"):
            raise ConnectionError(f"the connection failed or was lost ({error})") from error
        raise OSError(f"{type(error).__name__}: {error}") from error
