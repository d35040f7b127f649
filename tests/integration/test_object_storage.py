"""Runs and sweeps of several processes in object storage, killed and continued, while the server makes trouble."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from itertools import count

import numpy as np
import pytest
from PIL import Image

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.storage import object_access
from fluxexp.storage.object_access import open_object_store
from fluxexp.storage.run_directory import RunDirectory
from tests.program import FAKE, Program
from tests.storage.s3_server import BUCKET, FaultyProxy, Request, Trouble, s3_server

pytestmark = pytest.mark.slow
pytest.importorskip("obstore")
pytest.importorskip("moto")
NUM_IMAGES = 24
RUN = (*FAKE, "model.seconds_per_step=[0.05]", "sampling.steps=2", f"dataset.length={NUM_IMAGES}")
TROUBLES: tuple[Trouble, ...] = ("busy", "lost request", "lost answer")


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Generator[FaultyProxy]:
    made = FaultyProxy(server)
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("ENDPOINT_URL", made.url)):
        monkeypatch.setenv(f"AWS_{name}", value)
    object_access._access.cache_clear()
    yield made
    object_access._access.cache_clear()
    made.close()


def make_trouble(proxy: FaultyProxy, every: int) -> None:
    """Let one of `every` requests fail."""
    numbers = count(1)

    def decide(request: Request, headers: dict[str, str]) -> Trouble | None:
        del request, headers
        number = next(numbers)
        return TROUBLES[number // every % len(TROUBLES)] if number % every == 0 else None

    proxy.trouble = decide


def num_images(root: Address) -> int:
    names = open_object_store(root / "x").access.bucket.list(root.path.partition("/")[2])
    return sum("/images/" in info.name for info in names)


def runs_in(root: Address) -> list[RunDirectory]:
    store = open_object_store(root / "x")
    names = (info.name for info in store.access.bucket.list(root.path.partition("/")[2]))
    found = sorted({name.split("/")[1] for name in names})
    return [run for name in found if (run := RunDirectory(root / name)).reader.is_run()]


def test_a_killed_run_is_continued_and_no_image_is_lost(program: Program, proxy: FaultyProxy) -> None:
    root = Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    arguments = (*RUN, f"output.dir={root}")
    make_trouble(proxy, every=9)
    with program.start(*arguments, processes=2) as first:
        deadline = time.monotonic() + 90
        while num_images(root) < 8:
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(StorageError, match="in use by another session of the same run"):
            runs_in(root)[0].store.require_usable()
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate(timeout=60)
    assert 8 <= num_images(root) < NUM_IMAGES
    with program.start(*arguments, processes=2) as continued:
        output = continued.communicate(timeout=120)
    assert continued.returncode == 0, output
    proxy.calm()
    (run,) = runs_in(root)
    summary = run.reader.summary()
    assert summary is not None
    assert (summary["status"], summary["num_ok"]) == ("complete", NUM_IMAGES)
    outcomes = run.reader.outcomes()
    assert [record.status for record in outcomes.values()] == ["ok"] * NUM_IMAGES
    assert num_images(root) == NUM_IMAGES
    assert not list(run.store.list("attempts/"))
    local = program.run(*RUN)
    for name, content in local.images.items():
        stored = Image.open(io.BytesIO(run.reader.read_image(f"images/{name}")))
        assert np.array_equal(np.asarray(stored), np.asarray(Image.open(io.BytesIO(content))))


def test_a_sweep_is_made_by_two_processes(program: Program, proxy: FaultyProxy) -> None:
    root = Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    arguments = ("-m", *FAKE, "dataset.limit=3", "sampling.steps=1,2", f"output.dir={root}", "metrics=basic")
    make_trouble(proxy, every=15)
    with program.start(*arguments, processes=2) as process:
        output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    runs = runs_in(root)
    assert len(runs) == 2
    for run in runs:
        assert len(run.reader.scores()) == 3
        assert list(run.store.list("events/"))
    names = [info.name for info in open_object_store(root / "x").access.bucket.list(root.path.partition("/")[2])]
    (sweep,) = (name for name in names if name.endswith("sweep.json"))
    content = open_object_store(root / sweep.split("/")[1]).get("sweep.json")
    assert content is not None
    assert [point["status"] for point in json.loads(content)["points"]] == ["complete", "complete"]
    assert not any(name.endswith(".lock") or "/.partial-" in name for name in names)


def test_credentials_that_stay_expired_end_the_run_and_the_same_command_continues_it(
    program: Program, proxy: FaultyProxy
) -> None:
    root = Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    arguments = (*RUN, f"output.dir={root}", "output.retry_s=2")
    process = program.start(*arguments)
    deadline = time.monotonic() + 90
    while num_images(root) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    proxy.trouble = lambda request, headers: "expired"
    output = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "the credentials have expired" in output[0] + output[1]
    assert "Traceback" not in output[0] + output[1], output[1]
    proxy.calm()
    again = program.start(*arguments)
    output = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert num_images(root) == NUM_IMAGES


@pytest.mark.parametrize("further", [(), ("metrics=basic", "report=html")])
def test_requests_are_one_for_each_image_and_few_others(
    further: Sequence[str], program: Program, proxy: FaultyProxy
) -> None:
    """`make test-s3` prints the numbers of docs/storage.md."""
    root = Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    arguments = (*FAKE, *further, "dataset.length=400", "sampling.batch_size=8", f"output.dir={root}")
    process = program.start(*arguments)
    output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    made = proxy.kinds()
    print(f"\nrequests for 400 images in batches of 8 {further}: {dict(sorted(made.items()))}")
    proxy.calm()
    again = program.start(*arguments)
    output = again.communicate(timeout=120)
    assert again.returncode == 0, output
    print(f"requests of the same command again: {dict(sorted(proxy.kinds().items()))}")
    assert made["PUT"] < 400 + 400 / 8 + 30
    assert proxy.kinds()["PUT"] < 5
