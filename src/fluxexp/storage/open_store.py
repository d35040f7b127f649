"""Opens stores by their address. This is the only place that knows which kinds of stores exist."""

from __future__ import annotations

from collections.abc import Callable

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.object_access import SCHEMES, open_object_store
from fluxexp.storage.run_store import RunStore

STORES: dict[str, Callable[[Address], RunStore]] = {
    "": lambda address: LocalStore(address.local_path()),
    **dict.fromkeys(SCHEMES, open_object_store),
}
"""How to open a store, by the scheme of its address. Local paths have no scheme."""


def open_store(address: Address) -> RunStore:
    """The store at `address`.

    Raises:
        StorageError: there is no store for this scheme, or the extra that it needs is not installed.
    """
    if address.scheme not in STORES:
        known = ", ".join(f"{scheme}://" for scheme in STORES if scheme)
        raise StorageError(
            f"{address} cannot be opened: fluxexp has no store for {address.scheme}://; give a local directory, or an "
            f"address that begins with one of {known}"
        )
    return STORES[address.scheme](address)
