"""The worker's loop, with models that fail: a failure affects only its own task."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.config.schema import FakeModelConfig
from fluxexp.data import open_dataset
from fluxexp.errors import StorageError
from fluxexp.experiment.pool import Pool
from fluxexp.models.base import Job, ModelInput, Prompt
from fluxexp.models.fake import FakeModel
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.stealing import prepare_queue
from fluxexp.parallel.topology import Topology, join
from fluxexp.plan import Plan
from fluxexp.records import Record, Sample
from fluxexp.storage.attempts import WorkerProcess
from fluxexp.storage.result_files import ATTEMPTS, events_stream
from fluxexp.telemetry import Event, EventLog, RankTotals
from fluxexp.worker import Assignment, PreparedSample, ResultWriter, Worker, WorkOrder

Compose = Callable[..., RunConfig]


class Rank:
    """The worker of one rank with a real run directory and a model from the test."""

    def __init__(self, config: RunConfig, model: Any, root: Path) -> None:
        self.plan = Plan.of(config, open_dataset(config.dataset), Address.of(root))
        self.directory = self.plan.directory
        self.model = model
        self.totals = RankTotals()
        self.seen: list[tuple[str, bool]] = []
        self.alone: list[int] = []
        """Numbers of tasks that are made alone."""
        self.stops: Callable[[Any], bool] = lambda model: False

    def work(self, attempts: dict[int, int] | None = None, *, is_alone: bool = True) -> Mapping[str, Record]:
        with self.directory.claimed():
            self.directory.writer.prepare(self.plan.fingerprint_payload, overwrite=False)
            self._work(attempts or {}, is_alone)
        return self.directory.reader.outcomes()

    def _work(self, attempts: dict[int, int], is_alone: bool) -> None:
        pending = [number for number in range(self.plan.num_tasks) if number not in self.alone]
        append = partial(self.directory.store.append_record, events_stream(0, "session"))
        events = EventLog(append, listeners=[self.totals.add])
        order = WorkOrder(
            number=0,
            config=self.plan.config,
            dataset=self.plan.dataset,
            directory=self.directory,
            attempts=attempts,
            is_alone=is_alone,
        )
        writer = ResultWriter({}, events, self._note, [order], WorkerProcess.current("session", 0))
        pool = Pool.of([order], [self.plan], [pending], num_ranks=1, is_cpu=True)
        coordinator = LocalCoordinator()
        prepare_queue(coordinator, 1)
        worker = Worker(
            self.model, join(self.plan.config.parallelism), writer, events, stops=lambda: self.stops(self.model)
        )
        try:
            worker.run_alone(Assignment(order, self.plan.task(number)) for number in self.alone)
            worker.run(pool.queue(coordinator, 0, events, "work"))
        finally:
            writer.close()
        if writer.errors:
            raise writer.errors[0]

    def batches(self) -> list[int]:
        """Sizes of the batches that went through all stages."""
        return [int(e.tasks or 0) for e in self._events() if e.span == "decode" and not e.error]

    def _events(self) -> list[Event]:
        (events,) = self.directory.reader.events(Event.from_json).values()
        return events

    def _note(self, _: WorkOrder, record: Record, item: PreparedSample | None) -> None:
        self.seen.append((record.key, item is not None))
        self.totals.count(images=int(record.status == "ok"), failed=int(record.status == "failed"))


class Model(FakeModel):
    """A fake model that records its calls and fails if `fails` returns an error."""

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.model, FakeModelConfig)
        super().__init__(config.model, torch.device("cpu"), rank=0)
        self.conditioned: list[int] = []
        self.denoised: list[list[Job]] = []
        self.fails: Callable[[Sequence[Job]], Exception | None] = lambda jobs: None
        self.encoded: list[list[Prompt]] | None = None
        """Prompts of each call of `encode_prompts`. None: text encoders are not streamed."""

    def streams_text_encoders(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> bool:
        kept = None if self.encoded is None else {prompt for call in self.encoded for prompt in call}
        return kept is not None and not kept.issuperset(prompts)

    def encode_prompts(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> None:
        assert self.encoded is not None
        self.encoded.append(list(prompts))

    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[ModelInput]:
        self.conditioned.append(len(inputs))
        return super().condition(inputs, max_sequence_length)

    def sample_noise(self, seed: int, height: int, width: int) -> Any:
        return seed, height, width

    def denoise(self, jobs: Sequence[Job]) -> Any:
        if error := self.fails(jobs):
            raise error
        self.denoised.append(list(jobs))
        return super().denoise(jobs)


@pytest.fixture
def rank(compose: Compose, tmp_path: Path) -> Callable[..., Rank]:
    def made(*overrides: str) -> Rank:
        config = compose("model=fake", "dataset.height=32", "dataset.width=32", "dataset.length=8", *overrides)
        return Rank(config, Model(config), tmp_path)

    return made


def test_batches_have_the_configured_size(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=3")
    assert len(one.work()) == 8
    assert one.batches() == [3, 3, 2]


def test_each_image_uses_the_noise_sample_of_its_seed(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=3")
    one.work()
    jobs = [job for batch in one.model.denoised for job in batch if not job.is_warmup]
    assert len({job.seed for job in jobs}) == 8
    assert all(job.noise_sample == (job.seed, 32, 32) for job in jobs)


def test_prompts_of_the_next_tasks_are_encoded_together(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=2", "dataset.length=40")
    one.model.encoded = []
    assert {record.status for record in one.work().values()} == {"ok"}
    assert len(one.model.encoded[0]) == 2 + 32
    assert len(one.model.encoded) <= 2
    assert {prompt for call in one.model.encoded for prompt in call} == {
        one.plan.dataset.load(index).prompt for index in range(40)
    }


def test_out_of_memory_halves_the_batch_size_permanently(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=4", "dataset.length=12")
    one.model.fails = lambda jobs: torch.OutOfMemoryError("CUDA out of memory.") if len(jobs) > 2 else None
    records = one.work()
    assert {record.status for record in records.values()} == {"ok"}
    assert {record.batch_size for record in records.values()} == {2}
    assert one.batches() == [2] * 6


def test_an_image_that_never_fits_is_a_failed_record_and_the_others_are_made(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=2")
    unlucky = one.plan.task(5)
    one.model.fails = lambda jobs: (
        torch.OutOfMemoryError("CUDA out of memory.") if any(job.seed == unlucky.seed for job in jobs) else None
    )
    records = one.work()
    assert records[unlucky.key].status == "failed"
    assert "OutOfMemoryError" in str(records[unlucky.key].error)
    assert sum(record.status == "ok" for record in records.values()) == 7


def test_an_image_that_fits_after_caches_are_freed_is_made(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=1")
    kept = {one.plan.task(5).seed}

    def fails(jobs: Sequence[Job]) -> Exception | None:
        if kept.intersection(job.seed for job in jobs):
            kept.clear()
            return torch.OutOfMemoryError("CUDA out of memory.")
        return None

    one.model.fails = fails
    assert {record.status for record in one.work().values()} == {"ok"}


def test_one_bad_item_of_a_batch_fails_alone(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=4")
    bad = one.plan.task(2)
    one.model.fails = lambda jobs: ValueError("bad item") if any(job.seed == bad.seed for job in jobs) else None
    records = one.work(attempts={bad.index: 3})
    assert records[bad.key].status == "failed"
    assert records[bad.key].error == "ValueError: bad item"
    assert records[bad.key].attempt == 4
    assert sum(record.status == "ok" for record in records.values()) == 7
    assert one.totals.snapshot().num_images == 7
    assert one.totals.snapshot().num_failed == 1


def test_a_lost_device_ends_the_rank(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=2")
    one.model.fails = lambda jobs: torch.AcceleratorError("device-side assert triggered")
    with pytest.raises(torch.AcceleratorError):
        one.work()
    assert one.directory.reader.outcomes() == {}, "no task is recorded as failed"


def test_results_that_cannot_be_written_end_the_work_on_their_run(rank: Callable[..., Rank]) -> None:
    one, numbers = rank("sampling.batch_size=1", "dataset.length=400"), count()

    def lose_the_disk(jobs: Sequence[Job]) -> None:
        images = one.directory.local_directory() / "images"
        while images.is_dir():
            images.rename(images.with_name(f"gone-{next(numbers)}"))
            with suppress(FileExistsError):  # the writer has made the directory again
                images.touch(exist_ok=False)  # a file where the directory must be

    one.model.fails = lose_the_disk
    with pytest.raises(StorageError, match="cannot be written"):
        one.work()
    assert len(one.model.denoised) < 100, "soon"


def test_a_sample_is_conditioned_once_for_all_its_variants(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.images_per_sample=4", "sampling.batch_size=2", "dataset.length=3")
    assert len(one.work()) == 12
    model = one.model
    assert isinstance(model, Model)
    assert sum(model.conditioned) == 3 + 2, "each sample once, and the first batch for the warm-up"
    assert len({job.seed for jobs in model.denoised for job in jobs}) == 12


def test_conditioning_serves_the_other_points_of_a_sweep(
    rank: Callable[..., Rank], compose: Compose, tmp_path: Path
) -> None:
    one = rank("sampling.batch_size=4")
    one.work(is_alone=False)
    assert sum(one.model.conditioned) == 8 + 4
    same = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.length=8", "sampling.batch_size=4")
    other_point = Rank(compose(*same, "sampling.guidance=2", "sampling.steps=2"), one.model, tmp_path)
    assert len(other_point.work(is_alone=False)) == 8
    assert sum(one.model.conditioned) == 8 + 4 + 4, "only the warm-up conditions again"
    other_data = Rank(compose(*same, "dataset.seed=5"), one.model, tmp_path)
    other_data.work(is_alone=False)
    assert sum(one.model.conditioned) == 8 + 4 + 4 + 4 + 8


def test_kept_conditionings_are_bounded(rank: Callable[..., Rank], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.worker.conditioner._MAX_CONDITIONINGS", 3)
    one = rank("sampling.batch_size=2")
    one.work(is_alone=False)
    assert len(one.model.conditionings) == 3


def test_the_conditioning_of_a_single_task_is_not_kept(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=2")
    assert len(one.work()) == 8
    assert not one.model.conditionings


def test_any_error_of_a_sample_fails_only_its_own_task(rank: Callable[..., Rank]) -> None:
    one = rank()
    load = one.plan.dataset.load

    def explode_at_3(index: int) -> Sample:
        if index == 3:
            raise ZeroDivisionError("a decoder's own surprise")
        return load(index)

    one.plan.dataset.load = explode_at_3  # type: ignore[method-assign]
    records = one.work()
    (failed,) = [record for record in records.values() if record.status == "failed"]
    assert failed.key == one.plan.task(3).key
    assert "ZeroDivisionError" in str(failed.error)


def test_a_batch_has_images_of_one_size(rank: Callable[..., Rank], compose: Compose, tmp_path: Path) -> None:
    from PIL import Image as Pictures

    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(9):
        Pictures.new("RGB", (32 + 16 * (index % 3), 48), "red").save(folder / f"{index}.png")
    overrides = ("dataset=folder", f"dataset.path={folder}", "dataset.mask=center", "dataset.prompt=x")
    config = compose("model=fake", *overrides, "sampling.batch_size=8")
    one = Rank(config, Model(config), tmp_path / "out")
    assert len(one.work()) == 9
    assert one.batches() == [3, 3, 3]


def test_broken_samples_become_failed_records(rank: Callable[..., Rank], compose: Compose, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("prompt,image,mask\n" + "a,missing.png,missing.png\n" * 3)
    config = compose("model=fake", "dataset=table", f"dataset.path={table}")
    one = Rank(config, Model(config), tmp_path / "out")
    records = one.work()
    assert [record.status for record in records.values()] == ["failed"] * 3
    assert all("missing.png: no such file" in str(record.error) for record in records.values())
    assert one.batches() == []


def test_the_callback_receives_every_record(rank: Callable[..., Rank]) -> None:
    one = rank("model.fail_every=2")
    records = one.work()
    assert sorted(one.seen) == sorted((key, record.status == "ok") for key, record in records.items())


def test_only_the_warm_up_waits_for_the_device(rank: Callable[..., Rank], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait in another place would delay the submission of the next batch."""
    waits: list[object] = []
    monkeypatch.setattr(Topology, "synchronize", lambda self: waits.append(self))
    rank("sampling.batch_size=2").work()
    assert len(waits) == 1


def test_warm_up_changes_no_pixel(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=2")
    records = one.work()

    def pixels(image: Image) -> bytes:
        return image.tobytes()

    from PIL import Image as Pictures

    first = one.plan.task(0)
    record = records[first.key]
    assert record.file is not None
    with Pictures.open(one.directory.local_directory() / record.file) as image:
        made = pixels(image.convert("RGB"))
    model = Model(one.plan.config)
    sample = one.plan.dataset.load(0)
    job = Job(ModelInput(prompt="", height=32, width=32), first.point, first.seed)
    (expected,) = model.decode(model.denoise([job])).images()
    assert expected is not None
    assert sample.image is not None
    assert sample.mask is not None
    assert made == pixels(Pictures.composite(expected, sample.image, sample.mask))


def test_a_record_has_the_number_of_computed_steps(rank: Callable[..., Rank], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "computed_steps", lambda _, latents: [3 + number for number in range(len(latents))])
    worked = rank("sampling.batch_size=2", "dataset.limit=2")
    worked.work()
    assert sorted(record.computed_steps or 0 for record in worked.directory.reader.outcomes().values()) == [3, 4]


def attempt_lines(one: Rank) -> list[dict[str, Any]]:
    store = one.directory.store
    return [json.loads(line) for stream in store.list(ATTEMPTS) for line in store.records(stream)]


def test_every_task_is_begun_on_disk_before_its_sample_is_read(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=2")
    load = one.plan.dataset.load
    begun_at_read: list[bool] = []
    lines: list[dict[str, Any]] = []

    def checked(index: int) -> Sample:
        lines[:] = attempt_lines(one)
        begun = {key for line in lines for key in line.get("begin", ())}
        begun_at_read.append(one.plan.task(index).key in begun)
        return load(index)

    one.plan.dataset.load = checked  # type: ignore[method-assign]
    assert len(one.work()) == 8
    assert begun_at_read == [True] * 8
    assert lines[0]["process"]["pid"] == os.getpid()
    assert attempt_lines(one) == [], "the process ended in order"
    assert len(lines) < 8, "one line for many tasks"


def test_a_session_that_stops_finishes_what_is_in_work_and_begins_no_more(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=2", "dataset.length=40")
    one.stops = lambda model: len(model.denoised) >= 4
    records = one.work()
    made = {job.seed for jobs in one.model.denoised for job in jobs if not job.is_warmup}
    assert len(made) <= 2 * 5
    assert {record.seed for record in records.values()} == made, "what was begun has a record"
    assert {record.status for record in records.values()} == {"ok"}
    assert attempt_lines(one) == [], "the rest is given back"


def test_suspects_are_read_and_made_alone_before_other_tasks(rank: Callable[..., Rank]) -> None:
    one = rank("sampling.batch_size=4")
    one.alone = [6, 2]
    reads: list[tuple[int, int]] = []
    load = one.plan.dataset.load

    begun: list[list[list[str]]] = []

    def counted(index: int) -> Sample:
        reads.append((index, len(one.seen)))
        begun.append([line["begin"] for line in attempt_lines(one) if "begin" in line])
        return load(index)

    one.plan.dataset.load = counted  # type: ignore[method-assign]
    assert len(one.work()) == 8
    assert reads[:2] == [(6, 0), (2, 1)], "the second is read when the first has its record"
    assert all(num_recorded == 2 for _, num_recorded in reads[2:])
    assert one.batches() == [1, 1, 4, 2]
    first, second = [one.plan.task(6).key], [one.plan.task(2).key]
    assert begun[:2] == [[first], [first, second]]


def test_a_suspect_that_only_fails_is_a_failed_record(rank: Callable[..., Rank]) -> None:
    one = rank()
    one.alone = [3]
    bad = one.plan.task(3)
    one.model.fails = lambda jobs: ValueError("bad item") if any(job.seed == bad.seed for job in jobs) else None
    records = one.work()
    assert records[bad.key].error == "ValueError: bad item"
    assert sum(record.status == "ok" for record in records.values()) == 7
