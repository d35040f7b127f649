"""Repeats `+experiment=steps` on disjoint samples and on the same samples, and says whether the answers agree.

Each repetition is a sweep by real processes in an own directory. Repetitions on disjoint samples draw their scenes from
other seeds (`dataset.seed`), repetitions on the same samples use seed 0. Two answers

    agree           both are decided, and each names a point that the other also calls good enough,
    are undecided   at least one of them does not decide,
    contradict      both are decided, but one says that the other's point is not good enough.

    python benchmarks/agreement.py [--samples 48] [--disjoint 3] [--same 2] [--processes 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from fluxexp.experiment.provenance import git_revision, versions


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one sweep."""

    name: str
    sweep: dict[str, Any]

    @property
    def is_decided(self) -> bool:
        """Whether the answer is shown."""
        return bool(self.sweep["answer"] and self.sweep["answer"]["decided"])

    @property
    def _verdicts(self) -> list[dict[str, Any]]:
        return list((self.sweep["answer"] or {}).get("verdicts", ()))

    @property
    def chosen(self) -> dict[str, Any] | None:
        """Settings of the chosen point."""
        number = (self.sweep["answer"] or {}).get("cheapest")
        return None if number is None else dict(self.sweep["points"][number]["settings"])

    def verdict_on(self, settings: dict[str, Any] | None) -> str:
        """What this sweep says of a point: enough, not enough or undecided."""
        for verdict in self._verdicts:
            if self.sweep["points"][verdict["point"]]["settings"] == settings:
                return str(verdict["verdict"])
        return "undecided"

    def costs(self) -> dict[int, dict[str, float]]:
        """Cost by number of steps. Points that differ only in guidance have the same cost."""
        return {point["settings"]["sampling.steps"]: point["cost"] for point in self.sweep["points"]}

    def to_json(self) -> dict[str, Any]:
        """What the file of figures has of this sweep."""
        cost = {
            str(steps): [cost[key] for key in ("device_s_per_image", "device_s_low", "device_s_high")]
            for steps, cost in sorted(self.costs().items())
        }
        kept = ("sentence", "decided", "cheapest", "best", "ties")
        answer = {key: self.sweep["answer"][key] for key in kept} if self.sweep["answer"] else None
        return {
            "name": self.name,
            "chosen": self.chosen,
            "answer": answer,
            "verdicts": dict(Counter(verdict["verdict"] for verdict in self._verdicts)),
            "cost_by_steps": cost,
            "costs_rise_with_steps": costs_rise(self),
            "warnings": self.sweep["warnings"],
        }


def main() -> None:
    """Run all repetitions, print the answers and how pairs of them agree, and write the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=48, help="samples per sweep")
    parser.add_argument("--disjoint", type=int, default=3, help="number of sweeps on disjoint samples")
    parser.add_argument("--same", type=int, default=2, help="number of sweeps on the same samples")
    parser.add_argument("--processes", type=int, default=1, help="number of processes of a sweep")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    wanted = [(f"samples {seed}", seed) for seed in range(args.disjoint)]
    wanted += [(f"samples 0, repetition {number}", 0) for number in range(2, args.same + 1)]
    answers = []
    for name, seed in wanted:
        answers.append(_run(name, seed, args.samples, args.processes))
        _say(answers[-1])
    pairs = [(one, other, agreement(one, other)) for one, other in combinations(answers, 2)]
    print()
    for one, other, verdict in pairs:
        print(f"{one.name:24} and {other.name:24} {verdict}")
    counted = Counter(verdict for _, _, verdict in pairs)
    print(f"{len(pairs)} pairs: " + ", ".join(f"{number} {verdict}" for verdict, number in counted.items()))
    if args.json:
        _write(args.json, args, answers, pairs, counted)


def _run(name: str, seed: int, samples: int, processes: int) -> Answer:
    launcher = [sys.executable]
    if processes > 1:
        launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", str(processes)]
    overrides = [f"dataset.limit={samples}", f"dataset.seed={seed}", "tracking=disabled", "report=off"]
    with tempfile.TemporaryDirectory() as directory:
        command = [*launcher, "-m", "fluxexp", "+experiment=steps", *overrides]
        done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        (file,) = Path(directory).glob("multirun/*sweep*/sweep.json")
        return Answer(name, json.loads(file.read_text()))


def agreement(one: Answer, other: Answer) -> str:
    """Whether two answers `agree`, at least one is `undecided`, or they `contradict` each other."""
    if not (one.is_decided and other.is_decided):
        return "undecided"
    crossed = (one.verdict_on(other.chosen), other.verdict_on(one.chosen))
    return "contradict" if "not enough" in crossed else "agree" if crossed == ("enough", "enough") else "undecided"


def costs_rise(answer: Answer) -> bool:
    """Whether more steps cost more, at every number of steps."""
    means = [cost["device_s_per_image"] for _, cost in sorted(answer.costs().items())]
    return means == sorted(means)


def _say(answer: Answer) -> None:
    state = "decided" if answer.is_decided else "undecided"
    print(f"{answer.name}: {state}. {(answer.sweep['answer'] or {}).get('sentence')}")
    for steps, cost in sorted(answer.costs().items()):
        ends = [cost["device_s_low"], cost["device_s_high"]]
        interval = "" if None in ends else f"   {ends[0] * 1e3:.1f} to {ends[1] * 1e3:.1f}"
        print(f"    {steps:2} steps  {cost['device_s_per_image'] * 1e3:6.1f} ms per image{interval}")
    for warning in answer.sweep["warnings"]:
        print(f"    {warning}")
    sys.stdout.flush()


def _write(
    path: Path,
    args: argparse.Namespace,
    answers: Sequence[Answer],
    pairs: Sequence[tuple[Answer, Answer, str]],
    counted: Counter[str],
) -> None:
    report = {
        "samples": args.samples,
        "processes": args.processes,
        "answers": [answer.to_json() for answer in answers],
        "pairs": [{"one": one.name, "other": other.name, "verdict": verdict} for one, other, verdict in pairs],
        "counts": dict(counted),
        "load_average": list(os.getloadavg()),
        "git_revision": git_revision(),
        "versions": versions(),
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
