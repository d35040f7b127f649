"""A bucket (or container) of an object store: objects by full name, over obstore, with the errors of a file system.

Each method is one request, except `list` and `delete`, which make one for each thousand objects.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from fluxexp.object_errors import RangeError, as_os_errors

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore as Client

_UPLOAD_BYTES = 8 << 20
"""Size of one part of a large upload. S3 has a limit of 10,000 parts."""
_UPLOADS = 4
"""Parts that are uploaded at the same time."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object."""

    name: str
    size: int
    modified_ns: int
    """By the clock of the store. S3 gives whole seconds."""
    e_tag: str | None
    """Changes with the content."""

    @classmethod
    def of(cls, meta: ObjectMeta) -> ObjectInfo:
        """The same, from obstore."""
        modified_ns = round(meta["last_modified"].timestamp() * 1e6) * 1000
        return cls(meta["path"], meta["size"], modified_ns, meta["e_tag"])


class Bucket:
    """The objects of one bucket. Thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def head(self, name: str) -> ObjectInfo | None:
        """What the store says of an object; None if there is none."""
        import obstore

        try:
            with as_os_errors(name):
                return ObjectInfo.of(obstore.head(self._client, name))
        except FileNotFoundError:
            return None

    def get(self, name: str) -> tuple[bytes, ObjectInfo] | None:
        """The content of an object; None if there is none."""
        import obstore

        try:
            with as_os_errors(name):
                found = obstore.get(self._client, name)
                return bytes(found.bytes()), ObjectInfo.of(found.meta)
        except FileNotFoundError:
            return None

    def get_range(self, name: str, start: int, end: int) -> tuple[bytes, int] | None:
        """Bytes `start` to `end` of an object, as far as it has them, and its whole size; None if there is none.

        If it ends at `start` or before, there are no bytes, and the size is `start`.
        """
        import obstore

        try:
            with as_os_errors(name):
                found = obstore.get(self._client, name, options={"range": (start, end)})
                return bytes(found.bytes()), found.meta["size"]
        except FileNotFoundError:
            return None
        except RangeError:
            return b"", start

    def put(self, name: str, data: bytes) -> str | None:
        """Write an object atomically. Returns its new tag."""
        import obstore

        with as_os_errors(name):
            return obstore.put(self._client, name, data, use_multipart=False)["e_tag"]

    def put_stream(self, name: str, content: IO[bytes]) -> None:
        """Write an object from a file, in several requests. It appears, atomically, with the last one."""
        import obstore

        with as_os_errors(name):
            obstore.put(self._client, name, content, chunk_size=_UPLOAD_BYTES, max_concurrency=_UPLOADS)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists. Returns whether this call, or a lost try of it, wrote it.

        When the answer to a request is lost, obstore sends it again, and the second one finds the object of the first.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with as_os_errors(name):
                obstore.put(self._client, name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes, e_tag: str) -> str | None:
        """Write an object that still has the tag `e_tag`. Returns its new tag; None if it has another one."""
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            with as_os_errors(name):
                return obstore.put(self._client, name, data, mode={"e_tag": e_tag}, use_multipart=False)["e_tag"]
        except (PreconditionError, FileNotFoundError):
            return None

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        """Yield all objects below `folder` (without a slash at the end), and below its subfolders, sorted by name."""
        import obstore

        with as_os_errors(folder):
            chunks = obstore.list(self._client, folder or None)
        while True:
            with as_os_errors(folder):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield from map(ObjectInfo.of, chunk)

    def list_folder(self, folder: str) -> builtins.list[ObjectInfo]:
        """The objects in `folder`, sorted by name, without those in its subfolders."""
        import obstore

        with as_os_errors(folder):
            found = obstore.list_with_delimiter(self._client, folder or None)
        return sorted(map(ObjectInfo.of, found["objects"]), key=lambda info: info.name)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects. It is no error if some do not exist."""
        import obstore

        several = list(names)
        if several:
            with suppress(FileNotFoundError), as_os_errors(several[0]):
                obstore.delete(self._client, several[0] if len(several) == 1 else several)
