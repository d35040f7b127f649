"""Members of tars in the layout of webdataset: plain ustar headers, which every reader of tars knows."""

from __future__ import annotations

import tarfile

END = bytes(2 * tarfile.BLOCKSIZE)
"""The end of a tar."""


def tar_header(name: str, num_bytes: int) -> bytes:
    """The header of a member of `num_bytes`. `name` is ASCII, of less than 100 characters, so one block is enough."""
    info = tarfile.TarInfo(name)
    info.size = num_bytes  # all else is constant, so that equal members make equal tars
    return info.tobuf(tarfile.USTAR_FORMAT)


def tar_member(name: str, data: bytes) -> bytes:
    """A whole member: header, content, and zeros up to the next block."""
    return b"".join((tar_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE)))
