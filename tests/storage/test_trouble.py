"""A full disk, an I/O error or a restarted file server for some seconds: fluxexp waits, and loses nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fluxexp.address import Address
from fluxexp.config import RunConfig, check
from fluxexp.errors import FluxexpError, SampleError
from fluxexp.experiment import Outcome, run_experiment
from fluxexp.passing_trouble import PASSING, is_passing, read_patiently
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.patience import READING_S, Patience
from fluxexp.storage.retrying_store import RetryingStore
from tests.faults.shim import failing, fill, small_disk
from tests.program import FAKE, Done, Program
from tests.storage.memory_store import MemoryStore

Compose = Callable[..., RunConfig]


class Clock:
    """A time that only `sleep` moves, and what happens at certain times."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events: dict[float, Callable[[], None]] = {}

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for at_s in [at_s for at_s in self.events if at_s <= self.now_s]:
            self.events.pop(at_s)()


class BrokenStore(MemoryStore):
    """A store without files that fails with `error` while it has one, like object storage without its network."""

    error: OSError | None = None
    num_calls = 0

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        self._fail()
        super().put(key, data, durable=durable)

    def append_record(self, stream: str, record: bytes, *, durable: bool = True) -> None:
        self._fail()
        super().append_record(stream, record, durable=durable)

    def get(self, key: str) -> bytes | None:
        self._fail()
        return super().get(key)

    def _fail(self) -> None:
        self.num_calls += 1
        if self.error is not None:
            raise self.error


def patient(store: BrokenStore, retry_s: float) -> tuple[RetryingStore, Clock]:
    clock = Clock()
    patience = Patience(store.address, retry_s, clock=clock, sleep=clock.sleep)
    return RetryingStore(store, retry_s, patience), clock


@pytest.mark.parametrize("number", sorted(PASSING))
def test_writes_wait_for_a_passing_trouble_and_say_so(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    broken = BrokenStore()
    store, clock = patient(broken, retry_s=300)
    broken.error = OSError(number, os.strerror(number))
    clock.events[120.0] = lambda: setattr(broken, "error", None)
    store.put("images/a.png", b"image")
    store.append_record("manifest/a.jsonl", b"record")
    assert store.get("images/a.png") == b"image"
    assert store.records("manifest/a.jsonl") == [b"record"]
    assert 120 <= clock.now_s < 131, "it tries at least every ten seconds"
    begun, works = capsys.readouterr().err.splitlines()
    assert f"memory://run-0/images/a.png cannot be written: {os.strerror(number)}; trying again for 300 s" in begun
    assert "memory://run-0 works again, after 12" in works


def test_a_connection_without_a_number_is_a_passing_trouble() -> None:
    assert is_passing(ConnectionResetError("peer"))
    assert is_passing(TimeoutError("read"))
    wrapped = SampleError("a.png: cannot be read")
    wrapped.__context__ = OSError(errno.EIO, "x")
    assert is_passing(wrapped)
    assert not is_passing(OSError("a text only"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR])
def test_what_does_not_pass_fails_at_once(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    broken = BrokenStore()
    store, clock = patient(broken, retry_s=300)
    broken.error = OSError(number, os.strerror(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        store.put("a", b"")
    assert (clock.now_s, capsys.readouterr().err) == (0, "")


def test_after_retry_s_it_fails_and_later_writes_do_not_wait_again() -> None:
    broken = BrokenStore()
    store, clock = patient(broken, retry_s=60)
    broken.error = OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="full"):
        store.put("a", b"")
    assert clock.now_s == 60
    with pytest.raises(OSError, match="full"):
        store.put("b", b"")
    assert clock.now_s == 60
    broken.error = None
    store.put("c", b"")
    broken.error = OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="full"):
        store.put("d", b"")
    assert clock.now_s == 120, "a new trouble has its own time"


def test_reads_wait_for_seconds_only_and_zero_never_waits() -> None:
    broken = BrokenStore()
    broken.error = OSError(errno.ESTALE, "stale")
    for retry_s, waited_s in ((300.0, READING_S), (0.0, 0.0)):
        store, clock = patient(broken, retry_s)
        with pytest.raises(OSError, match="stale"):
            store.get("a")
        assert clock.now_s == waited_s
    with pytest.raises(OSError, match="stale"):
        patient(broken, 0.0)[0].put("a", b"")


def test_a_sample_is_read_again_and_the_error_says_how_often() -> None:
    tries: list[float] = []

    def read() -> str:
        tries.append(0)
        if len(tries) < limit:
            raise SampleError("a.png: cannot be read") from OSError(errno.EIO, "io")
        return "sample"

    limit = 3
    assert read_patiently(read, (0, 0, 0)) == "sample"
    tries, limit = [], 9
    with pytest.raises(SampleError, match=r"a.png: cannot be read \(tried 4 times\)"):
        read_patiently(read, (0, 0, 0))
    tries, limit = [], 9

    def damaged() -> str:
        tries.append(0)
        raise SampleError("a.png: is not an image")

    with pytest.raises(SampleError, match=r"is not an image$"):
        read_patiently(damaged, (0, 0, 0))
    assert len(tries) == 1


def test_a_full_disk_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk:
        store = RetryingStore(LocalStore(disk / "run"), retry_s=30)
        store.append_record("manifest/a.jsonl", b"x" * 4095)  # a full page, so that the next line needs another one
        ballast = fill(disk)
        threading.Timer(0.7, ballast.unlink).start()
        store.append_record("manifest/a.jsonl", b"y" * 5000)
        store.put("images/a.png", bytes(100_000))
        assert store.get("images/a.png") == bytes(100_000)
        assert [len(line) for line in store.records("manifest/a.jsonl")] == [4095, 5000]
        err = capsys.readouterr().err
        assert "cannot be written: No space left on device; trying again for 30 s" in err
        assert "works again" in err


APPEND = """
import sys
from pathlib import Path
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.retrying_store import RetryingStore
store = RetryingStore(LocalStore(Path(sys.argv[1])), retry_s=20)
for number in range(5):
    store.append_record("manifest/a.jsonl", b"%d" % number)
    store.put(f"images/{number}.png", b"%d" % number)
print(*(line.decode() for line in store.records("manifest/a.jsonl")), sep=",")
"""


@pytest.mark.parametrize(
    ("call", "number"),
    [("fsync", errno.EIO), ("write", errno.EDQUOT), ("open", errno.ESTALE), ("read", errno.EIO), ("link", errno.EIO)],
)
def test_each_system_call_may_fail_for_a_second(tmp_path: Path, call: str, number: int) -> None:
    """An append whose fsync failed is repeated, and is there once."""
    environment = failing((call, number, 0.5, str(tmp_path / "run")))
    command = [sys.executable, "-c", APPEND, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "0,1,2,3,4"
    assert ("works again" in done.stderr) == (call != "link")
    assert sorted(file.name for file in (tmp_path / "run" / "images").iterdir()) == [f"{n}.png" for n in range(5)]


def make_run(compose: Compose, root: Path, *overrides: str) -> Outcome:
    fake = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.limit=6", "tracking=disabled", "report=off")
    config = compose(*fake, "metrics=none", "sampling.batch_size=1", f"output.dir={root}", *overrides)
    check(config)
    return run_experiment(config, Address.of("outputs"), [])


def test_a_run_on_a_full_disk_waits_and_loses_nothing(
    tmp_path: Path, compose: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk:

        def fill_and_free() -> None:
            while not list(disk.glob("*/images/*.png")):
                time.sleep(0.01)
            ballast = fill(disk)
            time.sleep(1.0)
            ballast.unlink()

        filling = threading.Thread(target=fill_and_free)
        filling.start()
        outcome = make_run(compose, disk, "model.seconds_per_step=[0.02]", "sampling.steps=2")
        filling.join()
        err = capsys.readouterr().err
        assert "No space left on device; trying again for 300 s" in err
        assert "works again" in err
        assert (outcome.status, outcome.summary["num_ok"]) == ("complete", 6)
        images = outcome.address.local_path() / "images"
        assert len(list(images.iterdir())) == 6, "and nothing half-written"


def test_a_run_that_gives_up_is_continued_by_the_same_command(
    tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk becomes full after the first images and stays full: no record without its image, no image lost."""
    with small_disk(tmp_path / "disk", kib=1024) as disk:
        put = LocalStore.put
        ballast: list[Path] = []

        def fill_after_two(store: LocalStore, key: str, data: bytes, *, durable: bool = True) -> None:
            if key.startswith("images/") and len(list((store.path / "images").glob("*.png"))) == 2 and not ballast:
                ballast.append(fill(disk))
            put(store, key, data, durable=durable)

        monkeypatch.setattr(LocalStore, "put", fill_after_two)
        with pytest.raises(FluxexpError, match=f"{disk}.* cannot be written: .*No space left on device"):
            make_run(compose, disk, "output.retry_s=0")
        ballast[0].unlink()
        outcome = make_run(compose, disk, "output.retry_s=0")
        assert (outcome.status, outcome.summary["num_ok"], outcome.summary["num_resumed"]) == ("complete", 6, 2)


@pytest.mark.slow
def test_a_rank_that_cannot_write_takes_no_tasks(program: Program) -> None:
    environment = failing(("create", errno.EROFS, -1, "outputs/"))
    command = program.command(*FAKE, "dataset.limit=8", "parallelism=data", processes=2)
    done = program.run_command(command, {**environment, "FAULTS_RANK": "1"})
    assert done.returncode != 0, "the failed rank has an error"
    assert "rank 1 makes no images of this run" in done.stderr
    assert "Read-only file system" in done.stderr
    assert "(the other ranks did its work)" in done.stderr
    (directory,) = program.directories()
    ranks = Done(0, "", "", directory).summary["ranks"]
    assert [rank["num_images"] for rank in ranks] == [8, 0]
    assert "events could not be written" in ranks[1]["lost_telemetry"]["events"]


@pytest.mark.slow
def test_passing_read_errors_of_a_dataset_fail_no_sample(program: Program) -> None:
    folder = program.cwd / "photos"
    folder.mkdir()
    for name in ("lost", "passing", "sound"):
        Image.new("RGB", (32, 32), "red").save(folder / f"{name}.png")
    environment = failing(
        ("open", errno.EIO, -1, "photos/lost.png"),
        ("open", errno.ESTALE, 2.0, "photos/passing.png"),
    )
    fake = ("model=fake", "metrics=none", "report=off", "tracking=disabled")
    arguments = ("dataset=folder", f"dataset.path={folder}", "dataset.mask=box", "dataset.prompt=x")
    done = program.run_command(program.command(*fake, *arguments), environment)
    assert done.returncode == 3, done.stderr
    (directory,) = program.directories()
    records = Done(3, "", "", directory).records.values()
    assert {record.sample_key: record.status for record in records} == {
        "lost": "failed",
        "passing": "ok",
        "sound": "ok",
    }
    (error,) = [record.error for record in records if record.error]
    assert "Input/output error" in error
    assert error.endswith("(tried 4 times)")


def test_a_line_that_could_not_be_taken_back_damages_no_other(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.append_record("manifest/a.jsonl", b"one")
    with (tmp_path / "manifest" / "a.jsonl").open("ab") as stream:
        stream.write(b'{"half')
    store.append_record("manifest/a.jsonl", b"two")
    assert store.records("manifest/a.jsonl") == [b"one", b'{"half', b"two"]


def test_an_unreadable_store_does_not_look_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object, **__: object) -> os.stat_result:
        raise OSError(errno.ESTALE, "stale")

    monkeypatch.setattr(Path, "stat", stale)
    with pytest.raises(OSError, match="stale"):
        LocalStore(tmp_path).exists("images/a.png")
