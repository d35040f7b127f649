"""How long `debug=plan` takes, and how much memory it needs, for tables of millions of rows.

    python benchmarks/plan_rows.py --rows 1000000 10000000 --out benchmarks/results/plan_rows.json

Makes a parquet file of prompts for each number of rows, plans it in a process of its own, and reports the wall time
and the peak of that process's memory. With `--keys`, rows have a column `key`. With `--urls`, rows also have images
behind URLs, which planning must not ask for: the host does not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_GROUP_ROWS = 1_000_000
_PROMPT = "a photo of object number {} on a wooden table, evening light"
_HOST = "https://images.invalid"


def write_rows(path: Path, num_rows: int, *, has_keys: bool, has_urls: bool) -> None:
    """Write a table with prompts of about 60 characters."""
    names = ["prompt", *(["key"] if has_keys else []), *(["image"] if has_urls else [])]
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, _GROUP_ROWS):
            numbers = range(start, min(start + _GROUP_ROWS, num_rows))
            columns = {
                "prompt": [f"a photo of object number {number} on a wooden table, evening light" for number in numbers]
            }
            if has_keys:
                columns["key"] = [f"sample-{number:010}" for number in numbers]
            if has_urls:
                columns["image"] = [f"{_HOST}/{number % 1000:03}/{number}.jpg" for number in numbers]
            writer.write_table(pa.table(columns, schema))


def measure(path: Path, folder: Path, *, has_urls: bool) -> dict[str, Any]:
    """Plan a table in a process of its own. Returns seconds and the peak of its resident memory in MiB."""
    command = [sys.executable, "-m", "fluxexp", f"dataset.path={path}", "debug=plan", "tracking=disabled"]
    if has_urls:
        command += ["model=fake", "dataset=table", "dataset.mask=box", f"dataset.allowed_folders=[{_HOST}]"]
    else:
        command += ["model=tiny_dev", "dataset=prompts", "output.paste=false"]
    start_s = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    return {"seconds": round(time.perf_counter() - start_s, 1), "peak_mib": round(usage.ru_maxrss / 1024)}


def main() -> None:
    """Measure all numbers of rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--urls", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = []
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "rows.parquet")
            write_rows(path, num_rows, has_keys=arguments.keys, has_urls=arguments.urls)
            facts = {
                "rows": num_rows,
                "keys": arguments.keys,
                "urls": arguments.urls,
                "file_mib": path.stat().st_size >> 20,
            }
            results.append(facts | measure(path, Path(name), has_urls=arguments.urls))
            print(results[-1], flush=True)
    if arguments.out is not None:
        facts = {"cpus": os.cpu_count(), "python": platform.python_version()}
        arguments.out.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
