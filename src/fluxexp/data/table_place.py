"""Where a table is: a local file, or a URL with a local copy. Finds the files that its cells name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fluxexp.config.user_cache import cache_directory, exclusively
from fluxexp.data.paths import expanded, is_url
from fluxexp.data.remote_files import download, file_version, scheme_of, url_problem
from fluxexp.data.sources import File, RemoteFile, data_source, is_data_url
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.passing_trouble import read_patiently

_LOCAL_SCHEMES = ("file", "local")


@dataclass(frozen=True, slots=True)
class TablePlace:
    """A table. `folder_url` is the URL of its folder, for a table behind a URL."""

    path: Path
    """The local file: the table itself, or a copy in the user's cache."""
    name: str
    """What the user calls it."""
    folder_url: str | None = None

    @property
    def own_folders(self) -> list[Path]:
        """The local folders whose files rows may name."""
        return [self.path.parent] if self.folder_url is None else []

    @property
    def own_urls(self) -> list[str]:
        """The same for URLs."""
        return [] if self.folder_url is None else [self.folder_url]

    def file(self, text: str, where: str) -> File:
        """The file that a cell names: a path, a URL or a data URL. Relative paths start at the table's folder.

        Raises:
            SampleError: the URL cannot be read.
        """
        if is_data_url(text):
            return data_source(text, where)
        if is_url(text):
            if scheme_of(text) in _LOCAL_SCHEMES:
                return Path(unquote(urlsplit(text).path))
            if problem := url_problem(text):
                raise SampleError(f"{where} {text!r} {problem[0]}; {problem[1]}")
            return RemoteFile(text)
        path = expanded(text)
        if self.folder_url is None:
            return self.path.parent / path
        return path if path.is_absolute() else RemoteFile(f"{self.folder_url}/{text}")

    def named(self, text: str) -> Path | str | None:
        """The path or the URL that a cell names, without a check. None for a data URL."""
        if is_data_url(text):
            return None
        if is_url(text):
            return Path(unquote(urlsplit(text).path)) if scheme_of(text) in _LOCAL_SCHEMES else text
        path = expanded(text)
        if self.folder_url is None or path.is_absolute():
            return self.path.parent / path
        return f"{self.folder_url}/{text}"


def find_table(text: str, extensions: Sequence[str]) -> TablePlace:
    """The table at `dataset.path`. One behind a URL is copied into the user's cache, once for each version.

    Raises:
        ConfigError: it does not exist, cannot be read, or is not a file with one of `extensions`.
    """
    if not text:
        raise ConfigError(Problem("dataset.path", "is not set", hint="set dataset.path=FILE"))
    if is_url(text) and scheme_of(text) not in _LOCAL_SCHEMES:
        return _copy(text, extensions)
    path = Path(unquote(urlsplit(text).path)) if is_url(text) else expanded(text)
    if not path.is_file():
        raise ConfigError(Problem("dataset.path", "is not a file", text, f"set it to a {' or '.join(extensions)} file"))
    _require_extension(path.suffix, text, extensions)
    return TablePlace(path, str(path))


def require_url(key: str, url: str) -> None:
    """Raise a ConfigError if the URL in `key` cannot be read, whatever the server says."""
    if problem := url_problem(url):
        raise ConfigError(Problem(key, problem[0], url, problem[1]))


def config_trouble(key: str, url: str, error: Exception) -> ConfigError:
    """The ConfigError of a URL whose server does not give the file."""
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
    hint = "check the URL and the credentials (docs/inputs.md)"
    return ConfigError(Problem(key, f"cannot be read ({reason})", url, hint))


def _copy(url: str, extensions: Sequence[str]) -> TablePlace:
    require_url("dataset.path", url)
    place = urlsplit(url).path
    suffix = os.path.splitext(place)[1]  # noqa: PTH122 (a URL is not a path)
    _require_extension(suffix, url, extensions)
    try:
        version = read_patiently(lambda: file_version(url))
        path = _cached(url, version or f"unknown-{os.getpid()}", suffix.lower())
    except (OSError, SampleError) as error:
        raise config_trouble("dataset.path", url, error) from None
    return TablePlace(path, url, url.rpartition("/")[0])


def _cached(url: str, version: str, suffix: str) -> Path:
    name = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32]
    path = cache_directory() / "tables" / f"{name}{suffix}"
    with exclusively(path.with_suffix(".lock")):
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}.part")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                read_patiently(lambda: download(url, str(part)))
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    return path


def _require_extension(suffix: str, text: str, extensions: Sequence[str]) -> None:
    if suffix.lower() not in extensions:
        hint = f"use one of these file types: {', '.join(extensions)}"
        raise ConfigError(Problem("dataset.path", "is not a supported table", text, hint))
