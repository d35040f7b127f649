"""Measures how fast many small images are written and read, as one file (or object) each and as shards.

    python benchmarks/shards.py                                  20,000 images of 20 kB in a temporary directory
    python benchmarks/shards.py --images 100000 --bytes 2000 --json FILE
    python benchmarks/shards.py --root s3://bucket/folder        in object storage; the results are kept

One thread writes all images and their records, as the writer of a rank does, without a model. `written/s` is the number
of images per second until everything is in the store. `files` and `MB` are what the store then has, with the records.
`resume` is how long a reader that knows nothing needs to find which images exist. `read/s` is the number of single
images per second that it reads, in random order.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fluxexp.address import Address
from fluxexp.config.schema import OutputConfig
from fluxexp.experiment.provenance import versions
from fluxexp.records import Record
from fluxexp.storage.result_files import IMAGES, MANIFEST, SHARDS
from fluxexp.storage.run_directory import RunDirectory
from imagespeed.command import command
from imagespeed.report import now

_MOST_READS = 2000


@dataclass(frozen=True, slots=True)
class LayoutFigures:
    """What was measured with one layout."""

    layout: str
    num_images: int
    written_per_s: float
    num_files: int
    megabytes: float
    resume_s: float
    read_per_s: float


def main() -> None:
    """Run the benchmark, print a table, and write the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=20_000, help="size of each image file")
    parser.add_argument("--shard-mib", type=int, default=256)
    parser.add_argument("--root", type=Address.of, help="folder of the two runs; default: a temporary directory")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.root or Address.of(temporary)
        figures = [measure(root, args, is_sharded=is_sharded) for is_sharded in (False, True)]
    print(f"{args.images} images of {args.bytes} bytes")
    print("layout  written/s   files      MB   resume    read/s")
    for each in figures:
        print(
            f"{each.layout:7} {each.written_per_s:9.0f} {each.num_files:7} {each.megabytes:7.1f} "
            f"{each.resume_s:6.2f} s {each.read_per_s:9.0f}"
        )
    if args.json:
        values = {"command": command(), "time": now(), "versions": versions(), "layouts": list(map(asdict, figures))}
        args.json.write_text(f"{json.dumps(values, indent=2)}\n")


def measure(root: Address, args: argparse.Namespace, *, is_sharded: bool) -> LayoutFigures:
    """Write a run in one layout, and read it with a new reader."""
    address = root / ("shards" if is_sharded else "files")
    start = time.perf_counter()
    write(RunDirectory(address), args, is_sharded=is_sharded)
    write_s = time.perf_counter() - start
    reader = RunDirectory(address).reader
    start = time.perf_counter()
    num_made = int(reader.made().sum())
    resume_s = time.perf_counter() - start
    assert num_made == args.images
    keys = random.Random(0).sample(range(args.images), min(args.images, _MOST_READS))
    start = time.perf_counter()
    for number in keys:
        assert len(reader.read_image(f"{IMAGES}{key_of(number)}.png")) == args.bytes
    read_s = time.perf_counter() - start
    store = RunDirectory(address).store_without_retries
    sizes = [size for folder in (IMAGES, MANIFEST, SHARDS) for _, size in store.sizes(folder)]
    return LayoutFigures(
        layout="shards" if is_sharded else "files",
        num_images=args.images,
        written_per_s=args.images / write_s,
        num_files=len(sizes),
        megabytes=sum(sizes) / 1e6,
        resume_s=resume_s,
        read_per_s=len(keys) / read_s,
    )


def write(directory: RunDirectory, args: argparse.Namespace, *, is_sharded: bool) -> None:
    """Write all images and records into `directory`."""
    output = OutputConfig(
        dir=None,
        format="png",
        quality=95,
        paste=True,
        overwrite=False,
        shards=is_sharded,
        shard_mib=args.shard_mib,
        retry_s=300.0,
    )
    results = directory.writer.results(output)
    content = random.Random(1).randbytes(args.bytes)
    for number in range(args.images):
        record = record_of(number, args.bytes)
        assert record.file is not None
        results.write_image(record.file, content)
        results.append(record)
    results.flush()


def key_of(number: int) -> str:
    """Key of a task."""
    return f"sample-{number:08d}-0123456789abcdef"


def record_of(number: int, num_bytes: int) -> Record:
    """The record of an image."""
    key = key_of(number)
    return Record(
        key=key,
        sample_key=f"sample-{number:08d}",
        status="ok",
        file=f"{IMAGES}{key}.png",
        error=None,
        prompt="a small red circle above a large blue square on a striped background",
        seed=number,
        variant=0,
        steps=28,
        guidance=3.5,
        height=64,
        width=64,
        covered=None,
        rank=0,
        device="none",
        batch_size=1,
        seconds={"condition": 0.1, "denoise": 1.0, "decode": 0.1, "write": 0.01},
        attempt=1,
        bytes=num_bytes,
    )


if __name__ == "__main__":
    main()
