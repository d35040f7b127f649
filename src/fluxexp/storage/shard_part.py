"""The part of a shard: a Parquet file with one row for each image of the tar, and where in the tar the image is.

Columns: `key` (of the task), `member` (name of the image in the tar), `offset` and `bytes` (of the content of the image
in the tar), `attempt`, and `record` (the line that a manifest would have). The metadata has the size of the tar.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fluxexp.errors import StorageError

if TYPE_CHECKING:
    import pyarrow as pa

NOT_INSTALLED = "shards need pyarrow, which is not installed"
REMEDY = "pip install 'fluxexp[parquet]'"
_TAR_BYTES = b"fluxexp.tar_bytes"


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a tar."""

    key: str
    """Of the task."""
    name: str
    offset: int
    num_bytes: int
    attempt: int
    record: str


@dataclass(frozen=True, slots=True)
class ShardPart:
    """What the part of a shard says, with an entry for each image."""

    tar_bytes: int
    names: Sequence[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    attempts: npt.NDArray[np.int32]
    records: Sequence[bytes]


def write_part(members: Sequence[Member], tar_bytes: int) -> bytes:
    """The Parquet file of the images `members` in a tar of `tar_bytes`."""
    arrow, parquet = _libraries()
    columns: dict[str, Any] = {
        "key": arrow.array([member.key for member in members], arrow.string()),
        "member": arrow.array([member.name for member in members], arrow.string()),
        "offset": arrow.array([member.offset for member in members], arrow.int64()),
        "bytes": arrow.array([member.num_bytes for member in members], arrow.int64()),
        "attempt": arrow.array([member.attempt for member in members], arrow.int32()),
        "record": arrow.array([member.record for member in members], arrow.string()),
    }
    table: pa.Table = arrow.table(columns).replace_schema_metadata({_TAR_BYTES: str(tar_bytes).encode()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_part(content: bytes) -> ShardPart:
    """Inverse of `write_part`.

    Raises:
        ValueError: the file is damaged.
        StorageError: pyarrow is not installed.
    """
    arrow, parquet = _libraries()
    try:
        table = parquet.read_table(io.BytesIO(content))
        return ShardPart(
            int((table.schema.metadata or {})[_TAR_BYTES]),
            table["member"].to_pylist(),
            table["offset"].to_numpy(),
            table["bytes"].to_numpy(),
            table["attempt"].to_numpy(),
            [text.encode() for text in table["record"].to_pylist()],
        )
    except (arrow.ArrowException, OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _libraries() -> tuple[Any, Any]:
    """pyarrow, which only runs with shards need."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise StorageError(f"{NOT_INSTALLED}: {REMEDY}") from error
    return pa, pq
