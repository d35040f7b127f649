"""Reserves runs in object storage for one session, by leases: objects that a session renews while it lives.

A session creates the object `.lock` of its first run in a folder with put-if-absent, and writes it again every few
seconds, if it is still its own (compare and swap). The `.lock` of each further run in the same folder only names that
lease (`via`) and the session (`token`), so a sweep of any number of points renews one object.

Whether another session lives, its process says, if it is one of the same machine. Else the time of the last renewal
does. Both times that are compared are those of the store, so the clocks of hosts need not agree. If the last renewal is
recent, `claimed` watches the lease until it is renewed (then the session lives) or too old.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fluxexp.errors import StorageError
from fluxexp.storage.atomic import TEMPORARY_PREFIX
from fluxexp.storage.lock_owner import Owner
from fluxexp.storage.object_bucket import Bucket, ObjectInfo
from fluxexp.terminal import say

RENEW_S = 10.0
STALE_S = 60.0
"""A session on another machine that has not renewed its lease for this long has ended."""
_LOOK_S = 1.0


@dataclass(slots=True)
class _Lease:
    """A lease that this process holds."""

    name: str
    content: bytes
    e_tag: str | None


@dataclass(slots=True)
class _LeasedFolder:
    """What this process holds in one folder of runs."""

    lease: _Lease
    first: str
    """Name of the run whose lease it is."""
    token: str
    runs: set[str]
    """Names of all runs."""


class Leases:
    """The leases of this process in one bucket. Thread-safe."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._guard = threading.Lock()
        self._folders: dict[str, _LeasedFolder] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def claimed(self, address: str, name: str) -> Generator[None]:
        """Reserve the run at `address`, whose lease is the object `name`.

        Raises:
            StorageError: another session holds it.
            OSError: the lease cannot be read or written.
        """
        folder, run = _split(name)
        with self._guard:
            held = self._folders.get(folder)
            if held is not None and run in held.runs:
                raise _in_use(address, Owner.of_this_process(held.token, via=held.first))
            token = held.token if held else uuid.uuid4().hex
            content = _content(token, via=held.first if held else run)
            lease = _Lease(name, content, self._take(address, name, content))
            if held is None:
                self._folders[folder] = _LeasedFolder(lease, run, token, {run})
            else:
                held.runs.add(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            self._release(folder, run, lease)

    def require_free(self, address: str, name: str) -> None:
        """Check that `claimed` would succeed, without waiting.

        Raises:
            StorageError: another session holds the run.
        """
        found = self._bucket.get(name)
        if found is not None and (owner := Owner.parse(found[0])) is not None and self._age_s(name, *found) < STALE_S:
            raise _in_use(address, owner)

    def _take(self, address: str, name: str, content: bytes) -> str | None:
        """Create the lease, or replace that of a session that has ended. Returns its tag."""
        while not self._bucket.create(name, content):
            found = self._bucket.get(name)
            if found is None:
                continue  # released in between
            if found[0] == content:
                return found[1].e_tag  # the answer to the first try was lost
            self._wait_for_end(address, name, *found)
            if found[1].e_tag is None:
                self._bucket.delete([name])
            elif (tag := self._bucket.replace(name, content, found[1].e_tag)) is not None:
                return tag
        info = self._bucket.head(name)
        return None if info is None else info.e_tag

    def _wait_for_end(self, address: str, name: str, content: bytes, info: ObjectInfo) -> None:
        """Return when the lease is stale. StorageError as soon as it is renewed: its session lives."""
        owner = Owner.parse(content)
        if owner is None:
            return  # damaged, or not written by fluxexp
        first = _first(name, owner)
        held = (content, info) if first == name else self._bucket.get(first)
        age_s = self._age_s(name, content, info)
        if held is None or age_s >= STALE_S:
            return
        if _machine(content) == _this_machine():
            raise _in_use(address, owner)
        say(f"{address} was in use {age_s:.0f} s ago by {owner}: waiting whether that session lives", urgent=True)
        end_s = time.monotonic() + STALE_S - age_s
        while time.monotonic() < end_s:
            time.sleep(_LOOK_S)
            now = self._bucket.head(first)
            if now is None:
                return
            if now.modified_ns != held[1].modified_ns or now.e_tag != held[1].e_tag:
                raise _in_use(address, owner)

    def _age_s(self, name: str, content: bytes, info: ObjectInfo) -> float:
        """Seconds since the last renewal, by the clock of the store; 0 or infinite if the process itself shows it."""
        owner = Owner.parse(content)
        if owner is None:
            return float("inf")
        if _machine(content) == _this_machine():
            return 0.0 if self._has_session(owner) else float("inf")
        first = _first(name, owner)
        if first != name:
            found = self._bucket.get(first)
            lender = None if found is None else Owner.parse(found[0])
            if found is None or lender is None or lender.token != owner.token:
                return float("inf")
            info = found[1]
        probe = f"{name.rpartition('/')[0]}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        self._bucket.put(probe, b"")
        try:
            now = self._bucket.head(probe)
        finally:
            self._bucket.delete([probe])
        return 0.0 if now is None else max(0.0, (now.modified_ns - info.modified_ns) / 1e9)

    def _has_session(self, owner: Owner) -> bool:
        """Whether a session of this machine still runs. A session of this process can have ended before its process."""
        if owner.pid == os.getpid():
            return any(folder.token == owner.token for folder in self._folders.values())
        return owner.has_process

    def _release(self, folder: str, run: str, lease: _Lease) -> None:
        with self._guard:
            held = self._folders[folder]
            held.runs.discard(run)
            is_last = not held.runs
            if is_last:
                del self._folders[folder]
        with suppress(OSError):  # the next session finds that this process has ended, or that the lease is stale
            if run != held.first:
                self._delete_own(lease)
            if is_last:
                self._delete_own(held.lease)

    def _delete_own(self, lease: _Lease) -> None:
        found = self._bucket.get(lease.name)
        if found is not None and found[0] == lease.content:
            self._bucket.delete([lease.name])

    def _run(self) -> None:
        while True:
            time.sleep(RENEW_S)
            with self._guard:
                leases = [folder.lease for folder in self._folders.values()]
            for lease in leases:
                with suppress(OSError):  # a passing trouble: the next renewal comes in time
                    self._renew(lease)

    def _renew(self, lease: _Lease) -> None:
        if lease.e_tag is None:
            return
        tag = self._bucket.replace(lease.name, lease.content, lease.e_tag)
        if tag is not None:
            lease.e_tag = tag
            return
        found = self._bucket.get(lease.name)
        if found is not None and found[0] == lease.content:  # the answer to a renewal was lost
            lease.e_tag = found[1].e_tag
            return
        with self._guard:
            is_held = any(folder.lease is lease for folder in self._folders.values())
        lease.e_tag = None
        if is_held:
            say(
                f"fluxexp: the lease {lease.name} was lost, because it was not renewed for {STALE_S:g} s: another "
                "session may make the same images. Both results are valid; stop one of them",
                urgent=True,
            )


def _content(token: str, *, via: str) -> bytes:
    owner = Owner.of_this_process(token, via=via, has_kernel_lock=False)
    return json.dumps({**json.loads(owner.to_bytes()), "machine": _this_machine()}).encode() + b"\n"


def _machine(content: bytes) -> str | None:
    """Where the process of a lease runs; None if the lease is damaged."""
    try:
        return str(json.loads(content)["machine"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _this_machine() -> str:
    """The running kernel and the namespace of process ids. Containers of other hosts can have the same host name."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return uuid.uuid4().hex


def _first(name: str, owner: Owner) -> str:
    """Name of the lease that the session `owner` renews. `name` is its lease of one run."""
    folder, run = _split(name)
    return name if owner.via in ("", run) else f"{folder}/{owner.via}/{name.rpartition('/')[2]}"


def _split(name: str) -> tuple[str, str]:
    """The folder of runs, and the run, of a lease such as `folder/run/.lock`."""
    folder, _, run = name.rpartition("/")[0].rpartition("/")
    return folder, run


def _in_use(address: str, owner: Owner) -> StorageError:
    return StorageError(f"{address} is in use by another session of the same run ({owner}); wait until it ends")
