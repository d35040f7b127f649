"""Object storage on a real S3 server, with the troubles that networks and servers have."""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from fluxexp import object_clients
from fluxexp.address import Address
from fluxexp.config import RunConfig, check
from fluxexp.errors import ConfigError, StorageError
from fluxexp.experiment import Outcome, run_experiment
from fluxexp.passing_trouble import is_passing
from fluxexp.storage import object_access, object_lease, object_streams
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.lock_owner import Owner
from fluxexp.storage.object_access import open_object_store
from fluxexp.storage.object_store import ObjectStore
from fluxexp.storage.retrying_store import RetryingStore
from fluxexp.storage.run_directory import RunDirectory
from tests.storage.s3_server import BUCKET, SLOW_S, FaultyProxy, Request, Trouble, s3_server

pytest.importorskip("obstore")
pytest.importorskip("moto")
SMALL = ("model=fake", "dataset.height=32", "dataset.width=32", "tracking=disabled")
STREAM = "manifest/one.jsonl"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[FaultyProxy]:
    """A calm proxy, which new stores use. Nothing is repeated below `RetryingStore`, so that tests are quick."""
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    made = FaultyProxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    monkeypatch.setattr(object_clients, "_retry_config", lambda: {"max_retries": 0})
    monkeypatch.chdir(tmp_path)
    object_access._access.cache_clear()
    yield made
    object_access._access.cache_clear()
    made.close()


def new_place() -> Address:
    return Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}/run")


def new_store() -> ObjectStore:
    return open_object_store(new_place())


def from_another_process(store: ObjectStore) -> ObjectStore:
    """The same objects, as a process sees them that has written nothing."""
    object_access._access.cache_clear()
    return open_object_store(Address.of(store.address))


def make_run(compose: Callable[..., RunConfig], root: Address, *changes: str) -> Outcome:
    config = compose(*SMALL, f"output.dir={root}", *changes)
    check(config)
    return run_experiment(config, Address.of("outputs"), list(changes))


@pytest.mark.slow
def test_a_run_is_made_and_continued_and_its_objects_are_a_run_directory(
    compose: Callable[..., RunConfig], proxy: FaultyProxy, tmp_path: Path
) -> None:
    root = Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    first = make_run(compose, root, "dataset.limit=8")
    kinds = proxy.kinds()
    print("requests of a run of 8 images:", dict(kinds))
    assert first.status == "complete"
    assert kinds["PUT"] <= 8 + 20, "one request for each image, and few others"
    assert not any("images" in request.path and request.method == "HEAD" for request in proxy.requests)
    second = make_run(compose, root, "dataset.limit=9")
    assert (second.address, second.summary["num_resumed"], second.summary["num_ok"]) == (first.address, 8, 9)
    # Whoever downloads the objects has an ordinary run directory.
    directory = RunDirectory(first.address)
    bucket = open_object_store(first.address).access.bucket
    local = tmp_path / "copy"
    for info in bucket.list(first.address.path.partition("/")[2]):
        found = bucket.get(info.name)
        assert found is not None
        LocalStore(local).put(info.name.split("/", 2)[2], found[0])
    copy = RunDirectory(Address.of(local)).reader
    assert copy.outcomes().keys() == directory.reader.outcomes().keys()
    assert copy.scores() == directory.reader.scores()
    assert not list(tmp_path.glob("outputs*"))


@pytest.mark.slow
def test_a_run_with_shards_needs_few_requests_and_is_continued(
    compose: Callable[..., RunConfig], proxy: FaultyProxy
) -> None:
    root = Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    first = make_run(compose, root, "output.shards=true", "dataset.limit=8")
    assert first.status == "complete"
    assert proxy.kinds()["PUT"] <= 20, "one tar and one part instead of eight images"
    second = make_run(compose, root, "output.shards=true", "dataset.limit=9")
    assert (second.address, second.summary["num_resumed"], second.summary["num_ok"]) == (first.address, 8, 9)
    reader = RunDirectory(first.address).reader
    assert all(reader.read_image(str(record.file)) for record in reader.outcomes().values())


def test_a_large_shard_is_uploaded_in_parts_in_spite_of_trouble(proxy: FaultyProxy) -> None:
    store = new_store()
    patient = RetryingStore(store, retry_s=30)
    file = patient.new_file()
    content = bytes(range(256)) * (36 << 10)  # 9 MiB, and a part has 8
    file.append(content)
    proxy.fail_times(2, "busy", "PUT")
    patient.put_file("shards/x.tar", file)
    file.close()
    proxy.calm()
    assert patient.get_range("shards/x.tar", 300, 600) == content[300:600]
    assert dict(patient.sizes("shards/")) == {"x.tar": len(content)}


@pytest.mark.parametrize("trouble", ["busy", "lost request", "lost answer"])
def test_a_passing_trouble_is_waited_for_and_no_record_is_lost_or_doubled(
    trouble: Trouble, proxy: FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    store = new_store()
    patient = RetryingStore(store, retry_s=30)
    for number, which in enumerate(("PUT", "GET", "PUT")):
        proxy.fail_times(2, trouble, which)
        patient.put(f"images/{number}.png", b"x" * 100)
        assert patient.get(f"images/{number}.png") == b"x" * 100
        patient.append_record(STREAM, str(number).encode())
        patient.flush(STREAM)
    proxy.calm()
    assert from_another_process(store).records(STREAM) == [b"0", b"1", b"2"]
    assert "trying again for" in capsys.readouterr().err


def test_a_slow_answer_passes_and_a_refusal_does_not(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_clients, "REQUEST_S", SLOW_S / 6)
    store = new_store()
    for trouble, passes in (("slow", True), ("busy", True), ("expired", True), ("denied", False)):
        for use in (lambda: store.put("a.json", b"x"), lambda: store.get("a.json"), lambda: list(store.list(""))):
            proxy.fail_times(1, trouble)  # type: ignore[arg-type]
            with pytest.raises(OSError) as raised:  # noqa: PT011
                use()
            assert is_passing(raised.value) == passes, raised.value
            assert "Debug source" not in str(raised.value)


def test_credentials_that_expire_are_read_again_from_their_file(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {}\naws_secret_access_key = s\naws_session_token = t\n"
    file.write_text(text.format("old"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setattr(object_clients, "_REREAD_S", 0.2)

    def only_new(request: Request, headers: dict[str, str]) -> Trouble | None:
        return (
            None
            if "Credential=new/" in next(v for k, v in headers.items() if k.lower() == "authorization")
            else ("expired")
        )

    store = RetryingStore(new_store(), retry_s=30)
    store.put("a.json", b"1")
    proxy.trouble = only_new
    threading.Timer(0.5, lambda: file.write_text(text.format("new"))).start()
    store.put("a.json", b"2")
    assert store.get("a.json") == b"2"


def test_long_streams_have_parts_that_become_one_object(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_streams, "PART_BYTES", 100)
    monkeypatch.setattr(object_streams, "_READ_BYTES", 64)
    store = new_store()
    records = [f"record number {number}".encode() for number in range(40)]
    for record in records[:30]:
        store.append_record(STREAM, record)
        store.flush()
    assert len(list(store.access.bucket.list(store.access_name(f"{STREAM}.parts")))) > 3
    other = from_another_process(store)
    found = list(other.read_records(STREAM))
    assert [record for _, record in found] == records[:30]
    starts = [0, *(end for end, _ in found[:-1])]
    assert list(other.records_at(STREAM, starts[::-1])) == records[:30][::-1]
    assert [record for _, record in other.read_records(STREAM, starts[25])] == records[25:30]
    assert list(other.list("manifest/")) == [STREAM]
    object_streams.join_parts(other.access.bucket, other.access_name("manifest"))
    assert list(other.sizes("manifest/")) == [("one.jsonl", found[-1][0])]
    assert not list(other.access.bucket.list(store.access_name(f"{STREAM}.parts")))
    for record in records[30:]:  # the writer did not know that rank 0 joined its parts
        store.append_record(STREAM, record)
        store.flush()
    assert from_another_process(store).records(STREAM) == records
    once_more = from_another_process(store)  # a later session continues the stream
    once_more.append_record(STREAM, b"last")
    once_more.flush()
    assert from_another_process(store).records(STREAM) == [*records, b"last"]
    once_more.delete(STREAM)
    assert once_more.is_empty()


def test_many_streams_are_read_ahead_and_those_that_did_not_grow_are_not_read(proxy: FaultyProxy) -> None:
    store = new_store()
    keys = [f"manifest/{number:02d}.jsonl" for number in range(40)]
    for key in keys:
        store.put(key, key.encode() + b"\n")
    index = [(key, len(key) + 1) for key in store.list("manifest/")]
    proxy.calm()
    assert [store.records(key) for key, _ in index] == [[key.encode()] for key in keys]
    assert proxy.kinds() == {"GET": 40}
    store.put(keys[7], keys[7].encode() + b"\nmore\n")
    assert list(store.list("manifest/")) == keys
    proxy.calm()
    assert [list(store.read_records(*end)) for end in index] == [
        [(23, b"more")] if end == index[7] else [] for end in index
    ]
    assert proxy.kinds() == {"GET": 1}
    assert store.records(keys[3]) == [keys[3].encode()], "an entry of the list is used once"


def test_records_that_wait_are_written_by_time(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_streams, "_DURABLE_S", 0.1)
    store = new_store()
    store.append_record(STREAM, b"one")
    other = from_another_process(store)
    end_s = time.monotonic() + 20
    while other.records(STREAM) != [b"one"]:
        assert time.monotonic() < end_s
        time.sleep(0.1)


def foreign(content: bytes, **changes: object) -> bytes:
    """A lease as a session on another machine writes it."""
    return json.dumps({**json.loads(content), "machine": "other", "host": "elsewhere", **changes}).encode()


@pytest.mark.slow
def test_a_lease_of_another_machine_ends_with_its_heartbeat(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_lease, "STALE_S", 4.0)
    monkeypatch.setattr(object_lease, "_LOOK_S", 0.2)
    store = new_store()
    bucket, name = store.access.bucket, store.access_name(".lock")
    lease = foreign(Owner.of_this_process("token", via="run").to_bytes(), since="2001-01-01T00:00:00Z")
    bucket.put(name, lease)
    renewing = threading.Timer(1.5, lambda: bucket.put(name, lease))
    renewing.start()
    with (
        pytest.raises(StorageError, match=r"in use by .*host elsewhere"),
        store.claim(),
    ):
        pass
    renewing.join()
    with store.claim():  # not renewed any more
        assert Owner.parse((bucket.get(name) or (b"",))[0]) != Owner.parse(lease)
    assert bucket.head(name) is None


def test_leases_of_a_sweep_share_one_heartbeat(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lease, "RENEW_S", 0.3)
    root = Address.of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    runs = [open_object_store(root / f"run-{number}") for number in range(4)]
    with runs[0].claim(), runs[1].claim(), runs[2].claim(), runs[3].claim():
        proxy.calm()
        time.sleep(1.2)
        renewed = {request.path for request in proxy.requests}
        assert renewed == {f"/{BUCKET}/{runs[0].access_name('.lock')}"}
        other = from_another_process(runs[3])
        # This process lives, so its leases are those of a living session, although the other store does not know it.
        monkeypatch.setattr(object_lease.Leases, "_has_session", lambda self, owner: owner.has_process)
        with pytest.raises(StorageError, match="in use by another session"):
            other.require_usable()
        with pytest.raises(StorageError, match="in use by another session"), other.claim():
            pass
    other.require_usable()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://no-such-bucket/x", "the bucket does not exist"),
        ("ftp://host/x", "fluxexp has no store for ftp://"),
        ("s3://", "has no folder"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_problem_before_the_work(
    place: str, message: str, compose: Callable[..., RunConfig], proxy: FaultyProxy
) -> None:
    config = compose(*SMALL, f"output.dir={place}")
    with pytest.raises(ConfigError, match=rf"output\.dir='{place.rstrip('/')}.*{message}"):
        run_experiment(config, Address.of("outputs"), [])


def test_the_missing_extra_is_named(
    compose: Callable[..., RunConfig], proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    config = compose(*SMALL, f"output.dir=s3://{BUCKET}/x")
    with pytest.raises(ConfigError, match=r"output\.dir='s3://bucket/x'.*pip install 'fluxexp\[s3\]'"):
        run_experiment(config, Address.of("outputs"), [])


def test_missing_credentials_are_named(
    compose: Callable[..., RunConfig], proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    config = compose(*SMALL, f"output.dir=s3://{BUCKET}/x")
    with pytest.raises(ConfigError, match=r"no credentials were found in the environment"):
        run_experiment(config, Address.of("outputs"), [])
