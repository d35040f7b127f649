"""A second pass over what runs have made: every image scored, by all ranks, into files beside the records."""

from fluxexp.scoring.scoring_pass import ScoringReport, score_runs

__all__ = ["ScoringReport", "score_runs"]
