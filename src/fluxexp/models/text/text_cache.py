"""Encoded prompts on disk, in the user's cache directory. A prompt that any run on this machine encoded is reused.

The key of an encoding contains the content of the text encoders, the prompt and its length, and everything that changes
rounding: dtype, type of device, versions. Prompts are encoded one by one, so that an encoding does not depend on the
batches of the run that made it.
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

from fluxexp.config.checkpoint_files import model_files
from fluxexp.config.file_hashes import file_content
from fluxexp.config.fingerprint import directory_content
from fluxexp.config.hub_models import cached_snapshot
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig
from fluxexp.config.user_cache import cache_directory
from fluxexp.models.base import Prompt
from fluxexp.records import content_hash

Encoding = tuple[torch.Tensor, torch.Tensor]
"""T5's embeddings (text tokens, width) and CLIP's pooled embedding (width,)."""

LIMIT_BYTES = 8 << 30
"""About 2,000 prompts of FLUX.1 at 512 tokens. Beyond the limit, the least recently used are deleted first."""
_PUTS_PER_CLEANUP = 50
_RECENT = 64
"""Number of encodings in memory: more than the worker encodes in advance."""
_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def text_identity(config: FluxModelConfig) -> list[Any]:
    """What identifies the text encoders of a model. Models with the same text encoders share encodings."""
    if config.weights == "random":
        return ["random", config.layout]
    variant = [] if config.variant is None else [config.variant]
    directory, files = model_directory(config.source), model_files(config)
    in_files = [[part, file_content(files[part].file)] for part in _PARTS if part in files]
    if directory is None:
        snapshot = cached_snapshot(config.source, config.revision)
        return [config.source, snapshot.commit if snapshot else config.revision, *variant, *in_files]
    # Of an encoder in a file, the directory has the config, and perhaps weights that are not loaded.
    return [*(directory_content(directory / part) for part in _PARTS), *variant, *in_files]


class TextCache:
    """Encodings by prompt and length. Any number of processes may use the directory at the same time.

    A damaged file counts as missing. If the directory cannot be written, encodings are cached in memory only.

    Args:
        identity: identifies the encoders; see `text_identity`.
        dtype: of the encodings.
        device: where encodings are made. Its type is part of the key, because it changes rounding.
        limit_bytes: size of the files on disk.
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
        """The encodings that were put last, each with an event for the end of its copy to the host (None on a CPU)."""

    def has(self, prompt: Prompt, length: int) -> bool:
        """Whether there is an encoding. Its file may still be damaged or deleted before `get` reads it."""
        file = self._file(prompt, length)
        return file in self._recent or file.exists()

    def get(self, prompt: Prompt, length: int) -> Encoding | None:
        """The encoding of `prompt` in `length` tokens, on the CPU; None if there is none."""
        file = self._file(prompt, length)
        if file in self._recent:
            recent, arrived = self._recent[file]
            if arrived is not None:
                arrived.synchronize()
            return recent
        try:
            tensors = safetensors.torch.load_file(file)
            encoding = tensors["tokens"], tensors["pooled"]
        except (OSError, SafetensorError, KeyError):  # missing, or damaged: then a new file replaces it
            return None
        with suppress(OSError):
            os.utime(file)  # cleanup deletes by the time of the last use
        return encoding

    def put(self, prompt: Prompt, length: int, encoding: Encoding) -> None:
        """Keep an encoding. Returns at once: a thread writes the file when the device has computed the encoding."""
        arrived = None
        if encoding[0].is_cuda:
            host = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in encoding]
            for target, part in zip(host, encoding, strict=True):  # pinned, so that the copy does not wait
                target.copy_(part, non_blocking=True)
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
        """Wait until all encodings are written."""
        self._pool.shutdown(wait=True)

    def _file(self, prompt: Prompt, length: int) -> Path:
        texts = [prompt] if isinstance(prompt, str) else [prompt.clip, prompt.t5]
        return self._directory / f"{content_hash([*self._key, *texts, length])}.safetensors"

    def _write(self, file: Path, host: Sequence[torch.Tensor], arrived: Any) -> None:
        if arrived is not None:
            arrived.synchronize()
        data = safetensors.torch.save({"tokens": host[0].contiguous(), "pooled": host[1].contiguous()})
        partial = file.with_name(f".partial-{uuid.uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(file)  # atomic: other processes never see a part of a file
        except OSError:  # without the file, another run has to encode the prompt again
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        self._puts += 1
        if self._puts % _PUTS_PER_CLEANUP == 1:
            self._make_room()

    def _make_room(self) -> None:
        """Delete the least recently used files beyond the limit."""
        files: list[tuple[float, int, Path]] = []
        with suppress(OSError):
            for file in self._directory.iterdir():
                with suppress(OSError):  # another process has deleted it
                    status = file.stat()
                    files.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self._limit_bytes:
                return
            with suppress(OSError):
                file.unlink()
            total -= size
