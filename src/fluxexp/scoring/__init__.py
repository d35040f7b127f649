"""A second pass over finished images: all ranks compute scores and store them with the records."""

from fluxexp.scoring.scoring_pass import ScoringReport, score_runs

__all__ = ["ScoringReport", "score_runs"]
