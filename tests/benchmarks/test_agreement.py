"""The benchmark of how often the answers of two sweeps agree."""

from agreement import Answer, agreement


def test_a_sweep_without_an_answer_is_undecided() -> None:
    nothing = Answer("nothing", {"answer": None, "points": [], "warnings": []})
    assert agreement(nothing, nothing) == "undecided"
    assert (nothing.to_json()["verdicts"], nothing.verdict_on(None)) == ({}, "undecided")
