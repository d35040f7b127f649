"""Records as pandas frames. Only this module imports pandas, and only when a frame is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fluxexp.records import Record
from fluxexp.storage.scores import ScoreValues

if TYPE_CHECKING:
    import pandas as pd

_INTEGERS = ("height", "width", "computed_steps", "batch_size")
"""Columns of integers in which a failed task has no value."""


def records_frame(
    records: Iterable[Record], scores: ScoreValues, settings: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """One row for each record, with its key as index.

    Args:
        records: of one run.
        scores: of its images, by task key and metric.
        settings: values of further columns, the same in each row, which come first.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = require_pandas()
    first = {name: _plain(value) for name, value in (settings or {}).items()}
    rows = [{**first, **_row(record)} for record in records]
    frame = pandas.DataFrame(rows, columns=[*first, *_COLUMNS])
    for name in _INTEGERS:
        frame[name] = frame[name].astype("Int64")
    for name in dict.fromkeys(name for row in rows for name in scores.get(row["key"], ())):
        values = [scores.get(key, {}).get(name) for key in frame["key"]]
        frame[name] = pandas.Series(values, dtype="float64", index=frame.index)
    result: pd.DataFrame = frame.set_index("key")
    return result


def rows_frame(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """A frame of plain values. Raises ImportError if pandas is not installed."""
    pandas = require_pandas()
    plain = [[_plain(value) for value in row] for row in rows]
    frame: pd.DataFrame = pandas.DataFrame(plain, columns=list(columns))
    return frame


def require_pandas() -> Any:
    """The module pandas.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise ImportError(
            "a frame needs pandas, which is not installed: pip install 'fluxexp[pandas]'. "
            "`records`, `scores` and `settings` do not need it",
            name="pandas",
        ) from error
    return pandas


_COLUMNS = (
    *("key", "sample_key", "image_index", "status", "error", "prompt", "negative_prompt"),
    *("seed", "steps", "guidance", "true_cfg_scale", "height", "width", "seconds", "computed_steps"),
    *("batch_size", "rank", "device", "file"),
)


def _row(record: Record) -> dict[str, Any]:
    renamed = {"image_index": record.variant, "seconds": sum(record.seconds.values()) if record.seconds else None}
    return {name: renamed[name] if name in renamed else getattr(record, name) for name in _COLUMNS}


def _plain(value: Any) -> Any:
    """A value that pandas can group by: a list of one value is this value, a longer list is a tuple."""
    if isinstance(value, list | tuple):
        return _plain(value[0]) if len(value) == 1 else tuple(_plain(one) for one in value)
    return repr(value) if isinstance(value, dict) else value
