"""The result of a gate as JSON and as a JUnit XML file (docs/gate.md)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as ET

from fluxexp.compare.pairs import CHANGED_MOST
from fluxexp.gate.gate_result import GateResult, GateVerdict, MetricResult
from fluxexp.gate.gate_text import images_reason, lines_of, reason, sentence

GATE_VERSION = 1
_SUITE = "fluxexp.gate"
_NOT_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow, not even escaped."""


def to_json(result: GateResult) -> dict[str, Any]:
    """The content of the JSON file."""
    missing = result.runs.missing
    return {
        "version": GATE_VERSION,
        "verdict": result.verdict,
        "sentence": sentence(result),
        "error": None,
        "candidate": str(result.candidate),
        "reference": str(result.reference),
        "level": result.level,
        "identical": result.identical,
        "images": {
            "verdict": result.images_verdict,
            "num_pairs": len(result.runs.pairs),
            "num_samples": result.runs.num_samples,
            "num_failed": len(missing.failed),
            "num_pending": missing.pending,
            "only_reference": missing.only_reference,
            "only_candidate": missing.only_candidate,
            "failed_samples": list(missing.failed[:CHANGED_MOST]),
        },
        "metrics": [_metric_json(one) for one in result.metrics],
    }


def error_json(candidate: object, reference: object, text: str) -> dict[str, Any]:
    """The content of the JSON file if the runs cannot be compared."""
    values = {"version": GATE_VERSION, "verdict": "error", "sentence": f"ERROR: {text}", "error": text}
    return {**values, "candidate": str(candidate), "reference": str(reference)}


def junit(result: GateResult, seconds: float) -> bytes:
    """A JUnit file: one test case for the images, and one for each metric.

    A fail is a `failure`. An undecided metric is `skipped`, because nothing is known to be wrong.
    """
    cases = [_case("images", result.images_verdict, images_reason(result))]
    cases += [
        _case(one.metric.info.name, one.verdict, reason(one, result.level) if one.verdict != "pass" else "")
        for one in result.metrics
    ]
    return _document(cases, seconds, "\n".join(lines_of(result)))


def error_junit(text: str, seconds: float) -> bytes:
    """A JUnit file with one `error`."""
    case = ET.Element("testcase", classname=_SUITE, name="gate", time="0")
    ET.SubElement(case, "error", type="error", message=_xml_text(text.partition("\n")[0])).text = _xml_text(text)
    return _document([case], seconds, text)


def _metric_json(one: MetricResult) -> dict[str, Any]:
    values: Mapping[str, Any] = {
        "metric": one.metric.info.name,
        "kind": "distance" if one.metric.is_distance else "difference",
        "unit": one.metric.info.unit,
        "better": "higher" if one.metric.higher_is_better else "lower",
        "tolerance": one.metric.tolerance,
        "limit": one.metric.limit,
        "verdict": one.verdict,
        **{name: getattr(one, name) for name in _FIGURES},
        "worst": None if one.worst is None else asdict(one.worst),
    }
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}


_FIGURES = (
    "value",
    "low",
    "high",
    "pass_level",
    "fail_level",
    "candidate_mean",
    "reference_mean",
    "num_pairs",
    "num_samples",
    "num_better",
    "num_worse",
    "num_samples_needed",
)


def _case(name: str, verdict: GateVerdict, text: str) -> ET.Element:
    case = ET.Element("testcase", classname=_SUITE, name=name, time="0")
    if verdict == "fail":
        ET.SubElement(case, "failure", type="fail", message=_xml_text(text)).text = _xml_text(text)
    elif verdict == "undecided":
        ET.SubElement(case, "skipped", message=_xml_text(f"undecided: {text}"))
    return case


def _document(cases: list[ET.Element], seconds: float, output: str) -> bytes:
    counts: dict[str, Any] = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
    }
    skipped = str(sum(case.find("skipped") is not None for case in cases))
    took = f"{seconds:.3f}"
    root = ET.Element("testsuites", name=_SUITE, time=took, **counts)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    suite = ET.SubElement(root, "testsuite", name=_SUITE, **counts, skipped=skipped, time=took, timestamp=stamp)
    suite.extend(cases)
    ET.SubElement(suite, "system-out").text = _xml_text(output)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
