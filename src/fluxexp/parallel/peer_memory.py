"""Access to the GPU memory of other ranks on the same host, so that kernels of one rank write to it directly."""

from __future__ import annotations

import io
import pickle
import socket
from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_tensor

from fluxexp.parallel.collectives import Collectives

_BYTES = 4096
"""Size of the message that describes a tensor to another process."""
_DEVICE = 6
"""Index of the device number in the arguments that rebuild a tensor in another process (`torch.multiprocessing`)."""


class UnreachableError(Exception):
    """A rank cannot open the memory of another rank. Raised on all ranks of the replica."""


def reach_each_other(collectives: Collectives) -> bool:
    """Whether the GPUs of all ranks can write to each other's memory. A collective: all ranks call it."""
    device = collectives.device
    if device.type != "cuda" or torch.version.hip is not None or collectives.size == 1:
        return False
    found = [
        pickle.loads(text)
        for text in _all_gather_bytes(collectives, pickle.dumps((socket.gethostname(), device.index)))
    ]
    numbers = [number for _, number in found]
    can = len({host for host, _ in found}) == 1 and len(set(numbers)) == len(numbers)
    # A process that does not see the GPUs of the other ranks cannot ask about them.
    can = can and max(numbers) < torch.cuda.device_count()
    can = can and all(n == device.index or torch.cuda.can_device_access_peer(device.index, n) for n in numbers)
    return all(text == b"yes" for text in _all_gather_bytes(collectives, b"yes" if can else b"no"))


def shared(collectives: Collectives, own: torch.Tensor) -> list[torch.Tensor]:
    """Open the tensors of all ranks, in rank order, on this device. A collective: all ranks call it.

    Args:
        own: this rank's tensor, on the device. Its owner must keep it as long as other ranks may use it.

    Raises:
        UnreachableError: a rank cannot open the tensor of another; raised on all ranks.
    """
    torch.cuda.synchronize(own.device)
    tensors, problem = [], ""
    for rank, text in enumerate(_all_gather_bytes(collectives, _describe_tensor(own))):
        if rank == collectives.rank:
            tensors.append(own)
            continue
        rebuild, arguments = pickle.loads(text)
        # Open it on this rank's device, which accesses the memory. The library would open it on the owner's device.
        arguments = (*arguments[:_DEVICE], collectives.device.index, *arguments[_DEVICE + 1 :])
        try:
            tensors.append(rebuild(*arguments))
        except (RuntimeError, OSError) as error:  # some containers forbid it
            problem = f"rank {collectives.rank} of the replica cannot open the memory of rank {rank}: {error}"
    problems = [
        text.decode(errors="replace") for text in _all_gather_bytes(collectives, problem.encode()[: _BYTES - 4])
    ]
    if any(problems):
        raise UnreachableError("; ".join(filter(None, problems)))
    return tensors


def _describe_tensor(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    pickle.dump(reduce_tensor(tensor), file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def _all_gather_bytes(collectives: Collectives, text: bytes) -> list[bytes]:
    """All-gather a short message. Unpickling the result is safe: all ranks belong to one launch."""
    assert len(text) <= _BYTES - 4
    message = len(text).to_bytes(4, "little") + text
    padded = torch.tensor(list(message.ljust(_BYTES, b"\0")), dtype=torch.uint8, device=collectives.device)
    rows: Any = collectives.all_gather(padded).cpu()
    messages = [bytes(row.tolist()) for row in rows]
    return [message[4 : 4 + int.from_bytes(message[:4], "little")] for message in messages]
