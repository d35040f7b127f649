"""The collectives of a few ranks that make images together: NCCL's on GPUs, gloo's on CPUs. Knows no model.

They belong to no process group of the launcher: they are made when a group of ranks needs them, thrown away when a
batch went wrong in the middle, and made anew, without a word to any other rank. Compilers and CUDA graphs take them in.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

_TIMEOUT = timedelta(minutes=10)
"""Within a batch: a rank may have to compile what another has in its cache."""
_names = itertools.count()
_ops = torch.ops._c10d_functional


class Collectives:
    """One rank's end of the links among `size` ranks. Collectives are called by all of them in the same order.

    Args:
        store: that all of them share; nothing else must use it while collectives are on their way.
        rank: this one's place among them.
        device: of the tensors that travel.
    """

    def __init__(self, store: Store, rank: int, size: int, device: torch.device) -> None:
        self._store = store
        self.rank = rank
        self.size = size
        self.device = device
        self._num_opened = 0
        self._group: dist.ProcessGroup | None = None
        self._is_aborted = False
        is_gpu = device.type == "cuda"
        self.broken = torch.zeros(1, dtype=torch.int32, pin_memory=is_gpu)
        """Not 0 once the links are broken off: kernels that wait for other ranks look at it."""
        self._lock = threading.Lock()
        self._name = ""

    def open(self) -> None:
        """Connect to the others, who do the same now. As often as they were closed."""
        assert self._group is None, "closed before"
        store = PrefixStore(f"links/{self._num_opened}", self._store)
        self._num_opened += 1
        self._is_aborted = False
        self.broken.zero_()
        kinds = dist.ProcessGroup.BackendType
        self._group = dist.ProcessGroup(store, self.rank, self.size)
        backend: Any
        if self.device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = _TIMEOUT
            options.is_high_priority_stream = True
            kind, backend = kinds.NCCL, dist.ProcessGroupNCCL(store, self.rank, self.size, options)
        else:
            kind, backend = kinds.GLOO, dist.ProcessGroupGloo(store, self.rank, self.size, _TIMEOUT)
        self._group._set_default_backend(kind)
        self._group._register_backend(self.device, kind, backend)
        self._name = f"fluxexp-links-{next(_names)}"  # known to this process alone
        self._group._set_group_name(self._name)  # type: ignore[arg-type]
        c10d._register_process_group(self._name, self._group)  # type: ignore[arg-type]
        self.broadcast(torch.zeros(1, dtype=torch.uint8, device=self.device))  # NCCL connects at its first call

    def abort(self) -> None:
        """Break the links off, from any thread: what waits on them here or at the other ends is an error."""
        with self._lock:
            if self._group is None or self._is_aborted:
                return
            self._is_aborted = True
            self.broken.fill_(1)
            if self.device.type == "cuda":
                self._group.abort()
            else:  # gloo's connections end with the object alone
                self._drop()

    def close(self) -> None:
        """Forget the links. No CUDA graph that was recorded with them may be left. Safe to call again."""
        self.abort()
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._group is not None:
            c10d._unregister_process_group(self._name)  # type: ignore[arg-type]
            self._group = None

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Fill `tensor` with what it is on the first rank."""
        assert self._group is not None, "open"
        self._group.broadcast(tensor, 0).wait()

    def begin_all_to_all(self, flat: torch.Tensor, received: Sequence[int], sent: Sequence[int]) -> torch.Tensor:
        """Send parts of a flat tensor to all ranks, and get theirs; what comes back is to be used after `wait` alone.

        Args:
            flat: contiguous, (sum of `sent`,).
            received: elements from each rank.
            sent: elements to each rank.
        """
        result: torch.Tensor = _ops.all_to_all_single(flat, list(received), list(sent), self._name)
        return result

    def wait(self, begun: torch.Tensor) -> torch.Tensor:
        """What `begin_all_to_all` began, once it has come: on a GPU the stream waits, and the host goes on."""
        result: torch.Tensor = _ops.wait_tensor(begun)
        return result

    def all_to_all(self, flat: torch.Tensor, received: Sequence[int], sent: Sequence[int]) -> torch.Tensor:
        """Both of these."""
        return self.wait(self.begin_all_to_all(flat, received, sent))

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of all ranks, of one shape, one behind the other along a new first dimension."""
        gathered = self.wait(_ops.all_gather_into_tensor(tensor.contiguous(), self.size, self._name))
        return gathered.view(self.size, *tensor.shape)
