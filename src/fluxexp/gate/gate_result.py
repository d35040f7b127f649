"""The result of a gate: a verdict for each metric, and one for the images that the candidate lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fluxexp.address import Address
from fluxexp.gate.gate_metrics import GateMetric
from fluxexp.gate.run_pairs import RunPairs

GateVerdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True)
class WorstPair:
    """The pair of images with the worst value."""

    sample_key: str
    image_index: int
    candidate: float
    """Score of the candidate, or distance between the two images."""
    reference: float | None
    """Score of the reference; None for a distance."""
    candidate_file: str
    """Relative to the directory of the run."""
    reference_file: str


@dataclass(frozen=True, slots=True)
class MetricResult:
    """What is known about one metric."""

    metric: GateMetric
    verdict: GateVerdict
    value: float
    """Mean difference of the scores (candidate minus reference), or mean distance of the images."""
    low: float | None
    """Lower confidence bound of the true value; None for too few samples."""
    high: float | None
    """Upper confidence bound."""
    pass_level: float
    """Confidence level of the bound that a pass needs: after Holm's procedure at least that of the gate."""
    fail_level: float
    """Confidence level of the bound that a fail needs."""
    candidate_mean: float | None
    """Mean score; None for a distance."""
    reference_mean: float | None
    num_pairs: int
    """Pairs to which the metric applies."""
    num_samples: int
    num_better: int
    """Pairs in which the candidate has the better score; 0 for a distance."""
    num_worse: int
    num_samples_needed: int | None
    """How many samples would probably decide; None if it is decided, or if no practical number would."""
    worst: WorstPair | None
    """None if no score of the candidate is worse."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """The result of a gate."""

    candidate: Address
    reference: Address
    level: float
    runs: RunPairs
    identical: bool
    """Whether all pairs of images have the same pixels. False also for too few samples."""
    metrics: Sequence[MetricResult]

    @property
    def images_verdict(self) -> GateVerdict:
        """Of the images themselves: a failed task of the candidate is a fail, a pending one leaves it undecided."""
        missing = self.runs.missing
        return "fail" if missing.failed else "undecided" if missing.pending else "pass"

    @property
    def verdict(self) -> GateVerdict:
        """The worst one of all verdicts."""
        verdicts = {self.images_verdict, *(one.verdict for one in self.metrics)}
        return "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"
