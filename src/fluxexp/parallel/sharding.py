"""Static shares: contiguous, differing by at most one, by Accelerate's `split_between_processes`."""

from __future__ import annotations

from accelerate import PartialState


def static_share(work: list[int]) -> list[int]:
    """This rank's part of `work`. All ranks pass the same list; together the parts are the list, each item once.

    A plain list is asked for because `split_between_processes` hands any other sequence to every rank as a whole.
    """
    if type(work) is not list:
        raise TypeError(f"work is split as a list, not as {type(work).__name__}")
    if not work:
        return []
    with PartialState().split_between_processes(work) as share:
        return list(share)
