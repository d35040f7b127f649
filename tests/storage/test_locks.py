"""Two sessions never use one run, on any file system, and a sweep of any size needs few file descriptors."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fluxexp.errors import StorageError
from fluxexp.storage import lock_file
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.lock_owner import Owner
from fluxexp.storage.session_lock import LOCK
from tests.faults.shim import failing

HOLD = """
import sys
from contextlib import ExitStack
from pathlib import Path
from fluxexp.errors import StorageError
from fluxexp.storage.local_store import LocalStore
with ExitStack() as stack:
    try:
        for name in sys.argv[1:]:
            stack.enter_context(LocalStore(Path(name)).claim())
    except StorageError as error:
        print(error, flush=True)
        sys.exit(2)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def session(*runs: Path, environment: Mapping[str, str] = os.environ) -> Generator[subprocess.Popen[str]]:
    """A process that claims `runs`; `process.stdout` has its first line, which tells whether it could."""
    command = [sys.executable, "-c", HOLD, *map(str, runs)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=dict(environment), text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_session_says_who_holds_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with session(run) as other:
        assert first_line(other) == "held"
        with pytest.raises(StorageError) as caught, LocalStore(run).claim():
            pass
        text = str(caught.value)
        assert f"{run} is in use by another session of the same run" in text
        assert f"host {socket.gethostname()}, process {other.pid}, since 2" in text
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with LocalStore(run).claim():
            pass


@pytest.mark.parametrize("no_flock", [False, True], ids=["flock", "without flock"])
def test_a_sweep_and_a_single_run_exclude_each_other(tmp_path: Path, no_flock: bool) -> None:
    """Every point of a sweep is held, not only the one whose lock the kernel has; and each is free at its end."""
    points = [tmp_path / name for name in ("a", "b", "c")]
    environment = failing(("flock", errno.ENOSYS, -1, ".lock")) if no_flock else os.environ
    with session(*points, environment=environment) as sweep:
        assert first_line(sweep) == "held"
        for point in points:
            with session(point, environment=environment) as single:
                assert f"process {sweep.pid}" in first_line(single)
                assert single.wait() == 2
        sweep.kill()
        sweep.wait()
    with session(points[1], environment=environment) as single:
        assert first_line(single) == "held"
        with session(*points, environment=environment) as sweep:
            assert f"{points[1]} is in use" in first_line(sweep)
            assert sweep.wait() == 2, "before it is killed, it releases the points that it holds"
    assert all(LocalStore(point).is_empty() for point in points), "locks are not content"


def test_without_flock_a_message_says_how_sessions_exclude_each_other(tmp_path: Path) -> None:
    with session(tmp_path / "run", environment=failing(("flock", errno.ENOSYS, -1, ".lock"))) as one:
        assert first_line(one) == "held"
        assert one.stdin is not None
        one.stdin.close()
        assert one.wait() == 0
        assert one.stderr is not None
        text = one.stderr.read()
    assert text.count("is on a file system without file locks (Function not implemented)") == 1
    assert not (tmp_path / "run" / ".lock").exists(), "it was released"


def test_a_lock_file_of_another_host_is_stale_when_it_is_not_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".lock"
    held = lock_file.LockFile(file)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    held.acquire(OSError(errno.ENOSYS, "none"))
    monkeypatch.undo()
    ours = lock_file.LockFile(file)
    with pytest.raises(StorageError, match=f"host elsewhere, process {os.getpid()}.*remove {file}"):
        ours.acquire(OSError(errno.ENOSYS, "none"))
    then_s = time.time() - lock_file.STALE_S - 1
    os.utime(file, (then_s, then_s))
    ours.acquire(OSError(errno.ENOSYS, "none"))
    held.release()
    assert file.exists(), "a session does not remove the lock of the next one"
    ours.release()
    assert list(tmp_path.iterdir()) == []


def test_a_used_process_id_is_not_the_session(tmp_path: Path) -> None:
    owner = Owner.of_this_process("token", via="", has_kernel_lock=False)
    assert owner.has_process
    other = Owner.parse(owner.to_bytes().replace(str(owner.started_s).encode(), b"1.0"))
    assert other is not None
    assert not other.has_process


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff", b"null", b"[]", b"{}", b'{"host": 1}', b"[" * 100_000, b'{"via": "../../x"}']
)
def test_a_damaged_lock_is_free(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lock").write_bytes(content)
    with LocalStore(tmp_path).claim():
        pass


def test_a_lock_never_follows_a_link(tmp_path: Path) -> None:
    target = tmp_path / "outside"
    target.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with pytest.raises(StorageError, match="leads out of the run"), LocalStore(tmp_path / "run").claim():
        pass
    assert target.read_text() == "precious"


def test_a_lock_that_is_no_file_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(StorageError, match="is not a regular file: remove it"), LocalStore(tmp_path).claim():
        pass


def test_a_large_sweep_needs_one_descriptor(tmp_path: Path) -> None:
    runs = [tmp_path / f"point-{number}" for number in range(1200)]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(LocalStore(run).claim())
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
        with pytest.raises(StorageError, match="in use"), LocalStore(runs[700]).claim():
            pass
    for run in (runs[0], runs[700]):
        with LocalStore(run).claim():
            pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_folder_stays_locked_until_its_last_run_is_released(tmp_path: Path) -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(LocalStore(tmp_path / "a").claim())
    second.enter_context(LocalStore(tmp_path / "b").claim())
    first.close()
    with session(tmp_path / "b") as other:
        assert "is in use" in first_line(other)
    second.close()
    for name in ("a", "b"):
        with LocalStore(tmp_path / name).claim():
            pass
