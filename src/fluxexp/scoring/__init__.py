"""A second pass over finished images: all ranks compute scores and store them with the records."""

from fluxexp.scoring.scoring_pass import score_runs
from fluxexp.scoring.scoring_report import ScoringReport

__all__ = ["ScoringReport", "score_runs"]
