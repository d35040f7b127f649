"""Memory of other ranks' GPUs on the same host, which kernels of this one write to directly. Knows no model."""

from __future__ import annotations

import io
import pickle
import socket
from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_tensor

from fluxexp.parallel.collectives import Collectives

_BYTES = 4096
"""Of what tells another process where a tensor is."""
_DEVICE = 6
"""Place of the device's number among what rebuilds a tensor in another process (`torch.multiprocessing`)."""


class UnreachableError(Exception):
    """A rank cannot open the memory of another; raised on all of them."""


def reach_each_other(collectives: Collectives) -> bool:
    """Whether the GPUs of all ranks can write to each other's memory. All of them call it."""
    device = collectives.device
    if device.type != "cuda" or torch.version.hip is not None or collectives.size == 1:
        return False
    found = [pickle.loads(text) for text in _exchanged(collectives, pickle.dumps((socket.gethostname(), device.index)))]
    numbers = [number for _, number in found]
    can = len({host for host, _ in found}) == 1 and len(set(numbers)) == len(numbers)
    # A process that does not see the others' GPUs cannot say.
    can = can and max(numbers) < torch.cuda.device_count()
    can = can and all(n == device.index or torch.cuda.can_device_access_peer(device.index, n) for n in numbers)
    return all(text == b"yes" for text in _exchanged(collectives, b"yes" if can else b"no"))


def shared(collectives: Collectives, own: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that all ranks gave, in their order, as this device sees them. All of them call it, in step.

    Args:
        own: on the device, and kept by its owner for as long as the others may use it.

    Raises:
        UnreachableError: one of them cannot see another's, on all of them.
    """
    torch.cuda.synchronize(own.device)
    tensors, problem = [], ""
    for rank, text in enumerate(_exchanged(collectives, _described(own))):
        if rank == collectives.rank:
            tensors.append(own)
            continue
        rebuild, arguments = pickle.loads(text)
        # Opened on the own device, which is to reach the memory; the library would open it on the other's.
        arguments = (*arguments[:_DEVICE], collectives.device.index, *arguments[_DEVICE + 1 :])
        try:
            tensors.append(rebuild(*arguments))
        except (RuntimeError, OSError) as error:  # containers may forbid it
            problem = f"rank {collectives.rank} of the replica cannot open the memory of rank {rank}: {error}"
    problems = [text.decode(errors="replace") for text in _exchanged(collectives, problem.encode()[: _BYTES - 4])]
    if any(problems):
        raise UnreachableError("; ".join(filter(None, problems)))
    return tensors


def _described(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    pickle.dump(reduce_tensor(tensor), file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def _exchanged(collectives: Collectives, text: bytes) -> list[bytes]:
    """What each rank has to say, up to so many bytes; they trust each other, as ranks of one launch."""
    assert len(text) <= _BYTES - 4
    message = len(text).to_bytes(4, "little") + text
    padded = torch.tensor(list(message.ljust(_BYTES, b"\0")), dtype=torch.uint8, device=collectives.device)
    rows: Any = collectives.all_gather(padded).cpu()
    messages = [bytes(row.tolist()) for row in rows]
    return [message[4 : 4 + int.from_bytes(message[:4], "little")] for message in messages]
