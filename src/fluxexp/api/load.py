"""`fluxexp.load`: the results in a directory, or at an address of object storage."""

from __future__ import annotations

import os

from fluxexp.address import Address
from fluxexp.api.run_result import RunResult
from fluxexp.api.sweep_result import SweepResult
from fluxexp.errors import StorageError
from fluxexp.storage.result_files import CONFIG, SWEEP
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory


def load(place: str | os.PathLike[str]) -> RunResult | SweepResult:
    """The results of a run or of a sweep, of this or of an older version of fluxexp, also while it is still made.

    Args:
        place: its directory, or its address (`s3://BUCKET/FOLDER/NAME`). `~` is the home directory.

    Raises:
        StorageError: there is neither a run nor a sweep, or the storage cannot be reached.
    """
    return load_address(_address(place))


def load_address(address: Address) -> RunResult | SweepResult:
    """Like `load`."""
    sweep, run = SweepDirectory(address), RunDirectory(address)
    try:
        if sweep.reader.is_sweep():
            return SweepResult(sweep)
        if run.reader.is_run():
            return RunResult(run)
    except OSError as error:
        raise StorageError(f"{address} cannot be read: {error}") from error
    raise StorageError(f"{address} is neither a run nor a sweep: it has no {CONFIG} and no {SWEEP}{_hint(address)}")


def _address(place: str | os.PathLike[str]) -> Address:
    address = Address.of(place)
    return Address.of(address.local_path().expanduser()) if address.is_local else address


def _hint(address: Address) -> str:
    """What to do if a directory is not a result."""
    if not address.is_local:
        return ""
    if not address.local_path().is_dir():
        return f" (there is no such directory; relative paths count from {os.getcwd()})"  # noqa: PTH109
    inside = sorted(path.parent.name for name in (CONFIG, SWEEP) for path in address.local_path().glob(f"*/{name}"))
    if inside:
        more = f" and {len(inside) - 1} others" if len(inside) > 1 else ""
        return f", but it contains {inside[0]}{more}: load one of them"
    return "; a sweep has its file once it has ended: start the same command again, or load its runs"
