"""The result of a gate in words: a table of its metrics, notes about images, and a verdict in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from fluxexp.compare.intervals import MIN_SAMPLES
from fluxexp.compare.verdicts import round_up
from fluxexp.gate.gate_result import GateResult, MetricResult, WorstPair

_NUM_NAMED = 3


def lines_of(result: GateResult) -> list[str]:
    """The text that the command prints."""
    runs = result.runs
    lines = [
        f"candidate  {result.candidate}",
        f"reference  {result.reference}",
        f"pairs      {len(runs.pairs)} images of {runs.num_samples} samples{_missing(result)}",
        "",
        f"{'metric':20} {'candidate':>10} {'reference':>10} {'value':>11} {'bound':>13} {'limit':>13}  verdict",
        *(_row(one) for one in result.metrics),
    ]
    lines += ["", *notes] if (notes := _notes(result)) else []
    return [*lines, "", sentence(result)]


def sentence(result: GateResult) -> str:
    """The verdict, its reasons, and what to do next."""
    sure = f"{100 * result.level:g} %"
    if result.verdict == "pass":
        if result.identical:
            return f"PASS: all {len(result.runs.pairs)} pairs of images are identical."
        return f"PASS: with {sure} confidence, {_and([_claim(one) for one in result.metrics])}."
    reasons = []
    if result.images_verdict == result.verdict:
        reasons.append(images_reason(result))
    reasons += [reason(one, result.level) for one in result.metrics if one.verdict == result.verdict]
    return f"{result.verdict.upper()}: {' '.join(text[0].upper() + text[1:] for text in reasons)}"


def reason(one: MetricResult, level: float) -> str:
    """Why a metric failed or is undecided, as a sentence."""
    beyond = _beyond(one)
    if one.verdict == "fail":
        return f"with {100 * level:g} % confidence, {beyond}."
    if one.low is None:
        return f"{one.metric.info.title} has {one.num_samples} samples, and a verdict needs at least {MIN_SAMPLES}."
    may = f"{one.num_samples} samples neither prove nor rule out that {beyond}."
    if one.num_samples_needed is None:
        return f"{may} Its value is so close to the limit that no practical number of samples would decide."
    return f"{may} About {round_up(one.num_samples_needed):,} samples would decide: make both runs with more samples."


def images_reason(result: GateResult) -> str:
    """Why the images that the candidate lacks do not let it pass. Empty if they do."""
    missing = result.runs.missing
    if missing.failed:
        named = ", ".join(dict.fromkeys(missing.failed[:_NUM_NAMED]))
        return f"{len(missing.failed)} tasks failed in the candidate that have an image in the reference ({named})."
    if missing.pending:
        return f"{missing.pending} images of the candidate are not made yet: run its command again."
    return ""


def value_text(value: float, one: MetricResult) -> str:
    """A mean difference with its sign, or a mean distance."""
    value += 0.0  # -0.0 becomes 0.0
    return f"{value:.4g}" if one.metric.is_distance else f"{value:+.4g}"


def worst_text(worst: WorstPair) -> str:
    """The worst pair, for a note."""
    against = "" if worst.reference is None else f" against {worst.reference:.4g}"
    return (
        f"{worst.candidate:.4g}{against}, sample {worst.sample_key}, image {worst.image_index}: {worst.candidate_file}"
    )


def _row(one: MetricResult) -> str:
    means = ["" if mean is None else f"{mean:.4g}" for mean in (one.candidate_mean, one.reference_mean)]
    bound, symbol = shown_bound(one)
    shown = "" if bound is None else f"{symbol} {value_text(bound, one)}"
    limit = f"{'>=' if one.metric.higher_is_better else '<='} {value_text(one.metric.limit, one)}"
    value = value_text(one.value, one)
    title = one.metric.info.title
    return f"{title:20} {means[0]:>10} {means[1]:>10} {value:>11} {shown:>13} {limit:>13}  {one.verdict}"


def shown_bound(one: MetricResult) -> tuple[float | None, str]:
    """The bound that the verdict is about, and its direction."""
    is_low = one.metric.higher_is_better != (one.verdict == "fail")
    return (one.low, ">=") if is_low else (one.high, "<=")


def _missing(result: GateResult) -> str:
    missing = result.runs.missing
    parts = [
        f"{number} only in the {name}"
        for number, name in ((missing.only_reference, "reference"), (missing.only_candidate, "candidate"))
        if number
    ]
    return f"; {', '.join(parts)}" if parts else ""


def _notes(result: GateResult) -> list[str]:
    notes = []
    for one in result.metrics:
        title = one.metric.info.title
        if not one.metric.is_distance:
            equal = one.num_pairs - one.num_better - one.num_worse
            notes.append(f"{title}: {one.num_worse} pairs are worse, {one.num_better} better, {equal} equal")
        if one.num_pairs < len(result.runs.pairs):
            notes.append(f"{title}: applies to {one.num_pairs} of {len(result.runs.pairs)} pairs")
        if one.worst is not None:
            notes.append(f"{title}: worst {worst_text(one.worst)}")
    return notes


def _claim(one: MetricResult) -> str:
    """What a pass says."""
    title, limit = one.metric.info.title, _amount(one)
    if one.metric.info.name == "psnr_to_reference":
        return f"mean {title} is at least {limit}"
    if one.metric.is_distance:
        return f"mean {title} is within {limit} of identical images"
    return f"{title} is worse by at most {limit}"


def _beyond(one: MetricResult) -> str:
    """What a fail says."""
    title, limit = one.metric.info.title, _amount(one)
    if one.metric.info.name == "psnr_to_reference":
        return f"mean {title} is below {limit}"
    if one.metric.is_distance:
        return f"mean {title} is further than {limit} from identical images"
    return f"{title} is worse by more than {limit}"


def _amount(one: MetricResult) -> str:
    unit = one.metric.info.unit
    return f"{one.metric.tolerance:g} {unit}" if unit else f"{one.metric.tolerance:g}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
