"""Writes a run into its store: preparation, images, records, and what can be derived from them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from fluxexp.config import RunConfig
from fluxexp.config.migrations import CONFIG_VERSION
from fluxexp.config.schema import OutputConfig
from fluxexp.errors import StorageError
from fluxexp.records import RECORD_VERSION
from fluxexp.storage.atomic import TEMPORARY_PREFIX
from fluxexp.storage.feature_store import SetScore, write_set_scores
from fluxexp.storage.manifest import ManifestWriter
from fluxexp.storage.result_files import CONFIG, FINGERPRINT, OVERRIDES, SESSIONS, SUMMARY
from fluxexp.storage.result_streams import ResultStream, ShardedImages, SingleImages
from fluxexp.storage.run_reader import RunReader
from fluxexp.storage.scores import ScoreWriter
from fluxexp.storage.sharded_store import ShardedStore

_PROBE_BYTES = 4096
"""A file of this size needs a block of the disk: an empty one can often be written to a full disk."""


class RunWriter:
    """Writes one run. Tells `reader` what it must read again."""

    def __init__(self, store: ShardedStore, reader: RunReader) -> None:
        self._store = store
        self._reader = reader

    def check(self, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        """Check that a session could claim and prepare the store, without changing anything.

        Raises:
            StorageError: it could not.
        """
        try:
            self._store.require_usable()
            self._require_ours(fingerprint, overwrite)
        except OSError as error:
            raise StorageError(f"{self._store.address} cannot be used: {error}") from error

    def prepare(self, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        """Take over an empty store, or one of the same config, and remove what a killed session left half-written.

        Only the process that claimed the store calls it, before any other process uses the store.

        Raises:
            StorageError: the store belongs to another config, or cannot be written.
        """
        store = self._store
        try:
            self._require_ours(fingerprint, overwrite)
            if overwrite:
                store.clear(last=FINGERPRINT)
            self._reader.forget_records()
            self._reader.refresh_scores()
            self._reader.begin_listing()
            store.remove_partial_files()
            # Written first and deleted last: fluxexp does not touch a directory without it.
            store.put_if_absent(FINGERPRINT, f"{json.dumps(fingerprint, indent=2, sort_keys=True)}\n".encode())
        except OSError as error:
            raise StorageError(f"{store.address} cannot be used: {error}") from error

    def require_writable(self) -> None:
        """Write and remove a small file, so that a process knows before it takes tasks whether it can write results.

        Raises:
            StorageError: the file cannot be written.
        """
        key = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self._store.put(key, bytes(_PROBE_BYTES))
            self._store.delete(key)
        except OSError as error:
            raise StorageError(f"{self._store.address} cannot be written: {error}") from error

    def reopen(self) -> None:
        """Remove the summary: a session is about to add to the run.

        Raises:
            StorageError: it cannot be removed.
        """
        try:
            self._store.delete(SUMMARY)
        except OSError as error:
            raise StorageError(f"{self._store.address}/{SUMMARY} cannot be removed: {error}") from error

    def write_config(self, config: RunConfig, overrides: Sequence[str]) -> None:
        """Write the config with its version, and the overrides on the command line.

        Raises:
            StorageError: they cannot be written.
        """
        values = {"config_version": CONFIG_VERSION, **asdict(config)}
        self.write_derived(CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
        self.write_derived(OVERRIDES, yaml.safe_dump(list(overrides)).encode())

    def require_layout(self, output: OutputConfig) -> None:
        """Check that a session writes no single images beside shards: they could not replace images in shards.

        Raises:
            StorageError: it would.
        """
        try:
            is_mixed = not output.shards and self._store.has_shards()
        except OSError as error:
            raise StorageError(f"{self._store.address} cannot be read: {error}") from error
        if is_mixed:
            raise StorageError(
                f"{self._store.address} has its images in shards: continue it with output.shards=true, or start again "
                "with output.overwrite=true"
            )

    def results(self, output: OutputConfig) -> ResultStream:
        """A new stream of images and records, for one writer thread."""
        if not output.shards:
            return SingleImages(self._store)
        return ShardedImages(self._store, self._store.shard_writer(output.shard_mib << 20))

    def manifest(self) -> ManifestWriter:
        """A new stream of records without images, for one writer thread."""
        return ManifestWriter(self._store)

    def scores(self) -> ScoreWriter:
        """A new stream of scores, for one thread."""
        return ScoreWriter(self._store)

    def write_set_scores(self, scores: Mapping[str, SetScore], num: int) -> None:
        """Write distances between sets of `num` images. OSError if they cannot be written."""
        write_set_scores(self._store, scores, num)

    def append_session(self, entry: Mapping[str, Any]) -> None:
        """Append the figures of the session that ends.

        Raises:
            StorageError: they cannot be written.
        """
        try:
            self._store.append_record(SESSIONS, json.dumps(dict(entry), ensure_ascii=False).encode())
            self._store.flush(SESSIONS)
        except OSError as error:
            raise StorageError(f"{self._store.address}/{SESSIONS} cannot be written: {error}") from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json.

        Raises:
            StorageError: it cannot be written.
        """
        content = {"version": RECORD_VERSION, **summary}
        self.write_derived(SUMMARY, f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode())

    def write_derived(self, key: str, data: bytes) -> None:
        """Write a file that fluxexp can make again, for example the report.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            self._store.put(key, data)
        except OSError as error:
            raise StorageError(f"{self._store.address}/{key} cannot be written: {error}") from error

    def _require_ours(self, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        if not self._is_ours(fingerprint, overwrite):
            raise StorageError(
                f"{self._store.address} was made by another config (see its {FINGERPRINT}), and fluxexp does not mix "
                "results of different configs: choose another output.dir or name"
            )

    def _is_ours(self, fingerprint: Mapping[str, Any], overwrite: bool) -> bool:
        if self._store.is_empty():
            return True
        content = self._store.get(FINGERPRINT)
        if content is None:
            return False  # fluxexp did not make this directory
        try:
            return overwrite or json.loads(content) == dict(fingerprint)
        except (ValueError, RecursionError) as error:
            raise StorageError(
                f"{self._store.address}/{FINGERPRINT} is damaged ({error}); output.overwrite=true deletes the results "
                "and starts again"
            ) from None
