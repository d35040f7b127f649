"""Opens object stores by address. `fluxexp.object_clients` makes their clients."""

from __future__ import annotations

from functools import cache

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.object_clients import SCHEMES, make_client
from fluxexp.storage.object_bucket import Bucket
from fluxexp.storage.object_store import BucketAccess, ObjectStore

__all__ = ["SCHEMES", "open_object_store"]


def open_object_store(address: Address) -> ObjectStore:
    """The store at an address such as `s3://bucket/prefix/run`.

    Raises:
        StorageError: obstore is not installed, the address has no bucket or no prefix, or the configuration in the
            environment is not valid.
    """
    bucket, _, prefix = address.path.partition("/")
    if not bucket or not prefix:
        raise StorageError(f"{address} has no folder: an address is {address.scheme}://BUCKET/FOLDER")
    return ObjectStore(_access(address.scheme, bucket), prefix, str(address))


@cache
def _access(scheme: str, bucket: str) -> BucketAccess:
    return BucketAccess.of(Bucket(make_client(scheme, bucket)))
