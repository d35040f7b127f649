"""Clients of object storage, by scheme and bucket. Only this module knows obstore's kinds of stores.

Results (`storage`) and datasets (`data`) use the same clients, with the same settings in the environment.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxexp.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential
    from obstore.store import ObjectStore as Client

NOT_INSTALLED = "object storage needs obstore, which is not installed: pip install 'fluxexp[s3]'"
REQUEST_S = 30.0
"""The longest that one try of a request may take."""
_CONNECT_S = 5.0
_TRIES_S = 20.0
"""obstore repeats a request that fails for this long; then `RetryingStore` does (`output.retry_s`)."""
_LONGEST_REASON = 300
_REREAD_S = 60.0
"""A file with credentials is read again after this time, because something may renew it."""


def make_client(scheme: str, bucket: str) -> Client:
    """The client of a bucket.

    Raises:
        StorageError: obstore is not installed, or the configuration in the environment is not valid.
    """
    try:
        import obstore.store  # noqa: F401
    except ImportError as error:
        raise StorageError(f"{scheme}://{bucket} cannot be opened: {NOT_INSTALLED}") from error
    try:
        return _CLIENTS[scheme](bucket)
    except Exception as error:  # of obstore, of many types: a configuration that it cannot use
        reason = " ".join(str(error).partition("\n\n")[0].split())[:_LONGEST_REASON]
        raise StorageError(
            f"{scheme}://{bucket} cannot be opened: {reason}; see the settings in the environment (docs/storage.md)"
        ) from error


def _s3(bucket: str) -> Client:
    from obstore.store import S3Store

    options: dict[str, Any] = {}
    if not _has_s3_environment() and _credentials_file_has(profile := os.environ.get("AWS_PROFILE", "default")):
        options["credential_provider"] = lambda: _read_credentials(profile)
    if os.environ.get("AWS_REGION") is None and os.environ.get("AWS_DEFAULT_REGION") is None:
        options["region"] = "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint"] = endpoint
    return S3Store(bucket, client_options=_client_options(endpoint), retry_config=_retry_config(), **options)


def _gs(bucket: str) -> Client:
    from obstore.store import GCSStore

    return GCSStore(bucket, client_options=_client_options(None), retry_config=_retry_config())


def _az(container: str) -> Client:
    from obstore.store import AzureStore

    endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT")
    return AzureStore(container, client_options=_client_options(endpoint), retry_config=_retry_config())


def _memory(bucket: str) -> Client:
    from obstore.store import MemoryStore

    del bucket
    return MemoryStore()


_CLIENTS: dict[str, Callable[[str], Client]] = {"s3": _s3, "gs": _gs, "az": _az, "memory": _memory}
SCHEMES = tuple(_CLIENTS)


def _client_options(endpoint: str | None) -> ClientConfig:
    return {
        "timeout": timedelta(seconds=REQUEST_S),
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "allow_http": (endpoint or "").startswith("http://"),
    }


def _retry_config() -> RetryConfig:
    return {"max_retries": 3, "retry_timeout": timedelta(seconds=_TRIES_S)}


def _has_s3_environment() -> bool:
    names = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    return any(os.environ.get(name) for name in (*names, "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE"))


def _credentials_path() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()


def _credentials_file_has(profile: str) -> bool:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(_credentials_path())
    except (configparser.Error, UnicodeDecodeError, OSError):
        return False
    return parser.has_option(profile, "aws_access_key_id") and parser.has_option(profile, "aws_secret_access_key")


def _read_credentials(profile: str) -> S3Credential:
    """The credentials of a profile in the file of the AWS tools. obstore asks again when they expire."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(_credentials_path())
    values = parser[profile]
    return {
        "access_key_id": values["aws_access_key_id"],
        "secret_access_key": values["aws_secret_access_key"],
        "token": values.get("aws_session_token"),
        "expires_at": datetime.now(UTC) + timedelta(seconds=_REREAD_S),
    }
