"""Makes small real runs with the fake model, and gives them scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fluxexp.address import Address
from fluxexp.config import RunConfig, check
from fluxexp.experiment import run_experiment
from fluxexp.gate.run_pairs import RunPairs, read_pairs
from fluxexp.plan import Plan
from fluxexp.storage.run_directory import RunDirectory

FAKE = (
    "model=fake",
    "dataset.height=32",
    "dataset.width=32",
    "metrics=none",
    "report=off",
    "tracking=disabled",
    "output.format=png",
)


def make_run(config: RunConfig, root: Path) -> Path:
    """Run `config` below `root`. Returns the directory of the run."""
    check(config)
    return run_experiment(config, Address.of(root), []).address.local_path()


def score(directory: Path, metric: str, values: Sequence[float | None]) -> None:
    """Append scores to a run, in the order of its tasks."""
    plan = Plan.read(RunDirectory(Address.of(directory)))
    lines = [
        json.dumps({"key": plan.task_key(number), "metrics": {metric: value}, "version": 1})
        for number, value in enumerate(values)
    ]
    (directory / "scores").mkdir(exist_ok=True)
    with (directory / "scores" / "test.jsonl").open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


def with_scores(
    runs: RunPairs, candidate: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]
) -> RunPairs:
    """The first pairs of `runs`, as many as there are scores, with these scores by metric."""
    number = len(next(iter(candidate.values())))
    pairs = runs.pairs[:number]

    def scores(values: Mapping[str, Sequence[float]], keys: Sequence[str]) -> dict[str, dict[str, float | None]]:
        return {key: {name: known[place] for name, known in values.items()} for place, key in enumerate(keys)}

    return replace(
        runs,
        pairs=pairs,
        candidate=replace(runs.candidate, scores=scores(candidate, [pair.candidate.key for pair in pairs])),
        reference=replace(runs.reference, scores=scores(reference, [pair.reference.key for pair in pairs])),
    )


def pairs_of(candidate: Path, reference: Path) -> RunPairs:
    """The pairs of two runs."""
    return read_pairs(Address.of(candidate), Address.of(reference))
