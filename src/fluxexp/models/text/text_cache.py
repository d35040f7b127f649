"""Encoded prompts on disk, in the user's cache directory: what any run on this machine encoded is not encoded again.

An encoding is known by the text encoders' weights, its prompt and length, and by what rounds differently: dtype, kind
of device, versions. Prompts are encoded one by one: it does not matter which run did it, nor what its batches were.
"""

from __future__ import annotations

import os
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError

from fluxexp.config.fingerprint import directory_content
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig
from fluxexp.config.user_cache import cache_directory
from fluxexp.records import content_hash

Encoding = tuple[torch.Tensor, torch.Tensor]
"""T5's tokens (text tokens, width) and CLIP's pooled embedding (width,)."""

LIMIT_BYTES = 8 << 30
"""About 2,000 prompts of FLUX.1 at 512 tokens; those that were not used for longest go first."""
_PUTS_PER_LOOK = 50
_RECENT = 64
"""Encodings held in memory: more than are encoded ahead."""
_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def text_identity(config: FluxModelConfig) -> list[Any]:
    """What names the text encoders of a model: models that share theirs share encodings."""
    if config.weights == "random":
        return ["random", config.layout]
    directory = model_directory(config.path)
    if directory is None:
        return [config.path, config.revision]
    return [directory_content(directory / part) for part in _PARTS]


class TextCache:
    """Encodings by prompt and length. Any number of processes may use the directory at once.

    A file that is damaged counts as missing. Where nothing can be written, nothing is kept.

    Args:
        identity: what tells these encoders apart from others.
        device: where encodings are made, as its kind decides how they round.
    """

    def __init__(
        self, identity: Sequence[Any], dtype: torch.dtype, device: torch.device, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        versions = [torch.__version__, transformers.__version__]
        self._key = [*identity, str(dtype), device.type, *versions]
        self._limit_bytes = limit_bytes
        self._directory = cache_directory() / "text"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._puts = 0
        self._recent: OrderedDict[Path, tuple[Encoding, Any]] = OrderedDict()
        """What was put last, and when it has arrived on the CPU."""

    def has(self, prompt: str, length: int) -> bool:
        """Whether `get` has likely something to give."""
        file = self._file(prompt, length)
        return file in self._recent or file.exists()

    def get(self, prompt: str, length: int) -> Encoding | None:
        """The encoding of `prompt` in `length` tokens on the CPU, None where it is not kept."""
        file = self._file(prompt, length)
        if file in self._recent:
            recent, arrived = self._recent[file]
            if arrived is not None:
                arrived.synchronize()
            return recent
        try:
            tensors = safetensors.torch.load_file(file)
            encoding = tensors["tokens"], tensors["pooled"]
        except (OSError, SafetensorError, KeyError):  # not there, or damaged: then it is written over
            return None
        with suppress(OSError):
            os.utime(file)  # when it was used last
        return encoding

    def put(self, prompt: str, length: int, encoding: Encoding) -> None:
        """Keep an encoding. Returns at once: what the device is still working on is written when it is there."""
        arrived = None
        if encoding[0].is_cuda:
            host = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in encoding]
            for place, part in zip(host, encoding, strict=True):
                place.copy_(part, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(encoding[0].device))
        else:
            host = list(encoding)
        file = self._file(prompt, length)
        self._recent[file] = ((host[0], host[1]), arrived)
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        self._pool.submit(self._write, file, host, arrived)

    def close(self) -> None:
        """Wait until all that was put is written."""
        self._pool.shutdown(wait=True)

    def _file(self, prompt: str, length: int) -> Path:
        return self._directory / f"{content_hash([*self._key, prompt, length])}.safetensors"

    def _write(self, file: Path, host: Sequence[torch.Tensor], arrived: Any) -> None:
        if arrived is not None:
            arrived.synchronize()
        data = safetensors.torch.save({"tokens": host[0].contiguous(), "pooled": host[1].contiguous()})
        partial = file.with_name(f".partial-{uuid.uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(file)
        except OSError:  # a cache that cannot be written costs time and nothing else
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        self._puts += 1
        if self._puts % _PUTS_PER_LOOK == 1:
            self._make_room()

    def _make_room(self) -> None:
        """Remove what was not used for longest, beyond the limit."""
        files: list[tuple[float, int, Path]] = []
        with suppress(OSError):
            for file in self._directory.iterdir():
                with suppress(OSError):  # another process made room, too
                    status = file.stat()
                    files.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self._limit_bytes:
                return
            with suppress(OSError):
                file.unlink()
            total -= size
