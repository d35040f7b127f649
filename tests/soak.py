"""Kill ranks at random times, many times, and check that no image is ever lost, doubled or torn: `make soak`.

Each session starts one to three ranks without a launcher. After a random time, a random rank, or all of them, get
SIGKILL. Then the same command continues the run, with another number of ranks. Ranks are forked from a process that
has imported all libraries, so that a session takes about a second.

After each session: every `ok` record has an image file, whose bytes are those of a run that nobody killed; each image
file belongs to one task; no image that was there before is gone; the ranks that lived have ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fluxexp.records import Record
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.manifest import merge, read_attempts
from tests.program import FAKE, free_port
from tests.warm import be_fluxexp, forked, import_libraries

NUM_TASKS = 64
_HANG_S = 60.0
RUN = (
    *FAKE,
    "dataset.limit=16",
    "sampling.images_per_sample=4",
    "sampling.batch_size=2",
    "sampling.steps=1",
    "model.seconds_per_step=[0.03]",
    "parallelism=data",
    "parallelism.lost_after_s=1.5",
    "parallelism.join_timeout_s=2",
    "failures.max_process_deaths=null",  # so many kills hit some task three times
)
_WORLD_SIZES = (2, 1, 3)


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    sessions: int = 0
    runs: int = 0
    """Runs that were finished, and checked as a whole."""
    faults: Counter[str] = field(default_factory=Counter)
    exit_codes: Counter[int] = field(default_factory=Counter)

    def table(self) -> str:
        faults = {name: self.faults[name] for name in ("lost", "doubled", "torn or changed", "hung", "traceback")}
        lines = [("kills", self.kills), ("sessions", self.sessions), ("finished runs", self.runs), *faults.items()]
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.exit_codes.items()))
        return "\n".join([*(f"{name:16} {count}" for name, count in lines), f"{'exit codes':16} {codes}"])


class Soak:
    """Runs sessions in `directory` and kills their ranks."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._log = directory / "log.txt"
        self._random = random.Random(seed)
        self._expected: dict[str, bytes] = {}
        self.tally = Tally()

    def until(self, kills: int) -> None:
        """Make runs until as many ranks were killed."""
        self._wait(self._start(1, "reference"))
        self._expected = self._images("reference")
        assert len(self._expected) == NUM_TASKS, self._log.read_text()
        while self.tally.kills < kills:
            self._one_run()

    def _one_run(self) -> None:
        name = f"run{self.tally.runs}"
        known: set[str] = set()
        while len(known) < NUM_TASKS:
            self._session(name, _WORLD_SIZES[self.tally.sessions % len(_WORLD_SIZES)])
            found = self._check(name)
            self.tally.faults["lost"] += len(known - found)
            known = found
        self._wait(self._start(1, name))
        records = self._records(name)
        self.tally.faults["lost"] += NUM_TASKS - sum(record.status == "ok" for record in records.values())
        self.tally.runs += 1
        for directory in self._directory.glob(f"outputs/{name}-*"):
            shutil.rmtree(directory)

    def _session(self, name: str, world_size: int) -> None:
        """Start ranks, kill one or all of them, and wait for the others."""
        ranks = self._start(world_size, name)
        time.sleep(self._random.uniform(0.2, 2.5))
        victims = ranks if self._random.random() < 0.3 else [self._random.choice(ranks)]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        self.tally.kills += self._wait(ranks).count(-signal.SIGKILL)
        self.tally.sessions += 1
        print(f"\r{self.tally.sessions} sessions, {self.tally.kills} kills", end="", file=sys.stderr, flush=True)

    def _start(self, world_size: int, name: str) -> list[int]:
        port = free_port()
        return [forked(lambda rank=rank: self._be_rank(rank, world_size, port, name)) for rank in range(world_size)]

    def _be_rank(self, rank: int, world_size: int, port: int, name: str) -> int:
        os.chdir(self._directory)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        be_fluxexp([*RUN, f"name={name}"])

    def _wait(self, ranks: Sequence[int]) -> list[int]:
        """Exit codes of the ranks. A rank that does not end is a fault."""
        codes, deadline = [], time.monotonic() + _HANG_S
        for rank in ranks:
            while not (ended := os.waitpid(rank, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    self.tally.faults["hung"] += 1
                    os.kill(rank, signal.SIGABRT)
                    ended = os.waitpid(rank, 0)
                    break
                time.sleep(0.01)
            codes.append(os.waitstatus_to_exitcode(ended[1]))
        self.tally.exit_codes.update(codes)
        text = self._log.read_text()
        if "Traceback" in text:
            self.tally.faults["traceback"] += 1
            print(text, file=sys.stderr)
        if self.tally.sessions:
            self._log.write_text("")
        return codes

    def _check(self, name: str) -> set[str]:
        """The keys of the images that are made. Counts faults."""
        images = self._images(name)
        self.tally.faults["torn or changed"] += sum(data != self._expected.get(key) for key, data in images.items())
        made = {record.file.rpartition("/")[2] for record in self._records(name).values() if record.file is not None}
        self.tally.faults["lost"] += len(made - images.keys())
        self.tally.faults["doubled"] += len(images.keys() - self._expected.keys())
        return made

    def _records(self, name: str) -> dict[str, Record]:
        found = list(self._directory.glob(f"outputs/{name}-*"))
        return merge(read_attempts(LocalStore(found[0])).values) if found else {}

    def _images(self, name: str) -> dict[str, bytes]:
        files = self._directory.glob(f"outputs/{name}-*/images/*.png")
        return {file.name: file.read_bytes() for file in files if not file.name.startswith(".")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    import_libraries()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        soak = Soak(Path(directory), arguments.seed)
        soak.until(arguments.kills)
    tally = soak.tally
    print(tally.table())
    print(f"{'seconds':16} {time.monotonic() - begun:.0f}")
    if arguments.json:
        values = {"kills": tally.kills, "sessions": tally.sessions, "runs": tally.runs, "faults": dict(tally.faults)}
        arguments.json.write_text(f"{json.dumps(values, indent=2)}\n")
    return int(sum(tally.faults.values()) > 0)


if __name__ == "__main__":
    sys.exit(main())
