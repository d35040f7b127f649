"""`python -m tests.fuzz --num 10000 --seed 0`: random cases for everything that fluxexp reads.

Each case must end in time, with a result or with an error of fluxexp, and change no file outside of a temporary folder.
Prints a table. The exit code is 1 if a number of tracebacks, hangs or writes outside is not 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.fuzz.cases import Tally, run_cases
from tests.fuzz.targets import TARGETS

_PARTS_PER_PROCESS = 4
"""Each target runs in so many parts at most for each process."""
_LEAST = 50
"""A part has at least so many cases if there are so many, because its process takes seconds to start."""
_EXAMPLES = 5
"""Number of different findings of each kind that are shown."""


def main() -> None:
    """Run all cases, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--num", type=int, default=10_000, help="number of cases of each target")
    parser.add_argument("--seed", type=int, default=0, help="other seeds make other cases")
    parser.add_argument("--only", choices=list(TARGETS), action="append", help="only this target; can be repeated")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each core")
    args = parser.parse_args()
    names = args.only or list(TARGETS)
    tallies = {name: Tally() for name in names}
    # A process for each part: audit hooks cannot be removed.
    context = get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context, max_tasks_per_child=1) as pool:
        parts = []
        for name in names:
            size = max(-(-args.num // (_PARTS_PER_PROCESS * args.processes)), _LEAST)
            for first in range(0, args.num, size):
                num = min(size, args.num - first)
                parts.append((name, pool.submit(run_cases, name, first, num, args.seed)))
        for name, part in parts:
            tallies[name].add(part.result())
    _print(tallies)
    sys.exit(0 if all(tally.is_clean for tally in tallies.values()) else 1)


def _print(tallies: dict[str, Tally]) -> None:
    print(f"{'target':<12}{'cases':>8}{'refused':>9}{'tracebacks':>12}{'hangs':>7}{'writes outside':>16}{'CPU s':>8}")
    for name, tally in tallies.items():
        counts = f"{len(tally.tracebacks):>12}{len(tally.hangs):>7}{len(tally.writes):>16}"
        print(f"{name:<12}{tally.num:>8}{tally.num_refused:>9}{counts}{tally.wall_s:>8.0f}")
    for tally in tallies.values():
        for found in (tally.tracebacks, tally.hangs, tally.writes):
            by_place = {text.split(": ", 1)[-1]: text for text in reversed(found)}
            for text in list(by_place.values())[:_EXAMPLES]:
                print(f"  {text}")


if __name__ == "__main__":
    main()
