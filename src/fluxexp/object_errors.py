"""Translates errors of obstore to the OSErrors that `RunStore` promises, so that `passing_trouble.py` judges them."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
"""Codes of S3. A credential that is renewed from outside works again later."""
_PASSING_STATUS = frozenset({408, 409, 425, 429})
_METADATA_SERVICES = ("latest/api/token", "latest/meta-data", "computeMetadata", "metadata/identity")
"""Where object stores look for credentials if neither the environment nor a file has them: a service of the machine."""
_LONGEST = 300


class NoCredentialsError(ConnectionError):
    """No credentials were found, or the service of the machine that has them did not answer. It may pass."""


class NoBucketError(OSError):
    """The bucket or container does not exist. It does not pass."""


class RangeError(OSError):
    """A range begins at or behind the end of the object."""


@contextmanager
def as_os_errors(path: str) -> Generator[None]:
    """Raise an OSError for each error of obstore in the body, which uses the object or folder `path`.

    AlreadyExistsError and PreconditionError of obstore are answers, not troubles: they pass through.

    Raises:
        FileNotFoundError: there is no such object.
        ConnectionError, TimeoutError: a trouble that may pass: the server is busy, slow or unreachable, or the
            credentials have expired.
        PermissionError: the credentials are wrong, or do not suffice.
        OSError: any other error.
    """
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise
    except FileNotFoundError as error:
        if _code(str(error)) == "NoSuchBucket":
            raise NoBucketError("the bucket does not exist") from error
        raise
    except exceptions.BaseError as error:
        raise _os_error(error) from error
    except ValueError as error:  # a key that no object store can have, such as `a//b`
        raise OSError(f"{path} is not a possible name of an object: {error}") from error


def _os_error(error: Exception) -> OSError:
    from obstore import exceptions

    full = str(error)
    text, code, status = _short(full), _code(full), _status(full)
    if code == "NoSuchBucket":
        return NoBucketError("the bucket does not exist")
    if code in _EXPIRED:
        return ConnectionError(f"the credentials have expired ({code})")
    if any(path in full for path in _METADATA_SERVICES):
        return NoCredentialsError(f"no credentials were found in the environment: {text}")
    if status == 416 or "Invalid range" in full:
        return RangeError(text)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or status in (401, 403):
        return PermissionError(f"access denied ({code or status or text})")
    if status is not None and (status >= 500 or status in _PASSING_STATUS):
        return ConnectionError(f"the server answered {status}{f' ({code})' if code else ''}")
    if status is not None:
        return OSError(f"the server answered {status}{f' ({code})' if code else ''}: {text}")
    if "timed out" in full or "Timeout" in full or "TimedOut" in full:
        return TimeoutError("the server did not answer in time")
    if "HTTP error" in full or "error sending request" in full or "error decoding response" in full:
        return ConnectionError("the connection failed or was lost")
    return OSError(text)


def _status(text: str) -> int | None:
    match = _STATUS.search(text)
    return int(match[1]) if match else None


def _code(text: str) -> str | None:
    match = _CODE.search(text)
    return match[1] if match else None


def _short(text: str) -> str:
    """The message without obstore's dump of its own structures."""
    words = " ".join(text.partition("\n\nDebug source:")[0].split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."
