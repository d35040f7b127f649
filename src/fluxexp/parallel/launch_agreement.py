"""All processes of one launch agree on its name, which is new for each launch.

A launcher that restarts processes keeps its store, and the store keeps the keys of the processes that ended. On several
machines, the launcher's restart count is neither shared nor unique. So rank 0 draws a random name, and every key of the
launch begins with it.

A rank may read a name that an earlier rank 0 left in the store. Therefore ranks do not trust a name: each rank accepts
it with a random token of its own, and starts when rank 0 publishes a roster that contains this token. Only a rank 0
that is alive can know the token.

If ranks do not start in time, rank 0 publishes a roster without them, and the others do their work.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Mapping

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]

from fluxexp.errors import RankError

_POLL_S = 0.02
_NAME = "name"


def agree_on_launch(store: Store, rank: int, world_size: int, timeout_s: float) -> str:
    """Return the name of this launch, which is the same on every rank and was never used before.

    Rank 0 waits for the others until `timeout_s`. Then it starts without those that are absent, and says so.

    Args:
        store: of the launcher; it may contain keys of earlier launches.
        rank: of this process.
        world_size: number of processes of the launch. All must call this function.
        timeout_s: seconds to wait for the other ranks.

    Raises:
        RankError: rank 0 did not start in time, or this rank was late and rank 0 started without it; or the store is
            lost, because the process that keeps it has ended.
    """
    shared = PrefixStore("fluxexp/launch", store)
    deadline_s = time.monotonic() + timeout_s
    try:
        if rank == 0:
            return _invite(shared, world_size, deadline_s)
        return _accept(shared, rank, deadline_s, timeout_s)
    except (RuntimeError, DistError) as error:
        raise RankError(
            f"rank {rank} lost the store that all ranks share while it joined them: {str(error).splitlines()[0]}\n"
            "    (the process that keeps it may have ended; run the same command again)"
        ) from error


def _invite(shared: Store, world_size: int, deadline_s: float) -> str:
    """Rank 0: publish a new name, wait until every rank has accepted it, and publish their tokens."""
    name = uuid.uuid4().hex
    shared.set(_NAME, name)
    tokens: dict[str, str] = {}
    while len(tokens) < world_size - 1 and time.monotonic() < deadline_s:
        for rank in map(str, range(1, world_size)):
            if (token := _read(shared, f"{name}/accept/{rank}")) is not None:
                tokens[rank] = token
        time.sleep(_POLL_S)
    shared.set(f"{name}/roster", json.dumps(tokens))
    if absent := sorted(set(range(1, world_size)) - set(map(int, tokens))):
        print(f"fluxexp: rank(s) {absent} did not start in time; the others do their work", file=sys.stderr, flush=True)
    return name


def _accept(shared: Store, rank: int, deadline_s: float, timeout_s: float) -> str:
    """A rank above 0: accept each name that appears, until a roster contains this rank's token."""
    token = uuid.uuid4().hex
    accepted: set[str] = set()
    while True:
        name = _read(shared, _NAME)
        if name is not None:
            if name not in accepted:
                shared.set(f"{name}/accept/{rank}", token)
                accepted.add(name)
                # Rank 0 has its own deadline, and may have invited just now.
                deadline_s = time.monotonic() + 1.5 * timeout_s
            roster: Mapping[str, str] = json.loads(_read(shared, f"{name}/roster") or "{}")
            if roster.get(str(rank)) == token:
                return name
        if time.monotonic() > deadline_s:
            raise RankError(
                f"rank {rank} waited for rank 0 in vain (parallelism.join_timeout_s={timeout_s:g}): it has not "
                "started, or has started without this process; start all ranks again"
            )
        time.sleep(_POLL_S)


def _read(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None
