"""Collectives among the ranks of a replica: NCCL on GPUs, gloo on CPUs.

They use their own process group, not the launcher's. A replica opens the group when it needs it, aborts it after a
batch failed, and opens a new one, without other ranks. The collectives work in compiled code and in CUDA graphs.
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
"""Timeout of one collective. It is long, because one rank may compile code that another rank finds in its cache."""
_names = itertools.count()
_ops = torch.ops._c10d_functional


class Collectives:
    """One rank's view of a process group of `size` ranks. All ranks must call collectives in the same order.

    Args:
        store: shared by these ranks. Nothing else may use this connection while collectives run.
        rank: of this process in the group.
        size: ranks in the group.
        device: of all tensors.
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
        """int32, shape (1,), in pinned memory on GPUs. Not 0 after `abort`; kernels that wait for ranks poll it."""
        self._lock = threading.Lock()
        self._name = ""

    def open(self) -> None:
        """Make the process group. All ranks call it; again after each `close`."""
        assert self._group is None, "close the process group before it is opened again"
        store = PrefixStore(f"group/{self._num_opened}", self._store)
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
        self._name = f"fluxexp-group-{next(_names)}"  # only this process uses the name
        self._group._set_group_name(self._name)  # type: ignore[arg-type]
        c10d._register_process_group(self._name, self._group)  # type: ignore[arg-type]
        self.broadcast(torch.zeros(1, dtype=torch.uint8, device=self.device))  # NCCL connects in the first collective

    def abort(self) -> None:
        """Abort the process group, from any thread. Collectives that wait, here or on other ranks, raise an error."""
        with self._lock:
            if self._group is None or self._is_aborted:
                return
            self._is_aborted = True
            self.broken.fill_(1)
            if self.device.type == "cuda":
                self._group.abort()
            else:  # gloo closes its connections only when the object is deleted
                self._drop()

    def close(self) -> None:
        """Delete the process group. CUDA graphs captured with it must be deleted before. Safe to call again."""
        self.abort()
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._group is not None:
            c10d._unregister_process_group(self._name)  # type: ignore[arg-type]
            self._group = None

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy `tensor` of the first rank to all ranks, in place."""
        assert self._group is not None, "open() comes first"
        self._group.broadcast(tensor, 0).wait()

    def begin_all_to_all(self, flat: torch.Tensor, received: Sequence[int], sent: Sequence[int]) -> torch.Tensor:
        """Start an all-to-all of the parts of a flat tensor. Use the result only after `wait`.

        Args:
            flat: contiguous, shape (sum of `sent`,).
            received: number of elements from each rank.
            sent: number of elements to each rank.
        """
        result: torch.Tensor = _ops.all_to_all_single(flat, list(received), list(sent), self._name)
        return result

    def wait(self, begun: torch.Tensor) -> torch.Tensor:
        """Wait for the result of `begin_all_to_all`. On a GPU the current stream waits, and the host continues."""
        result: torch.Tensor = _ops.wait_tensor(begun)
        return result

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack `tensor` of all ranks, which have the same shape, along a new first dimension: (size, *shape)."""
        gathered = self.wait(_ops.all_gather_into_tensor(tensor.contiguous(), self.size, self._name))
        return gathered.view(self.size, *tensor.shape)
