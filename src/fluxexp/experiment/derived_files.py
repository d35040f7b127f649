"""The files that are made from the others: whether they are there and sound, and the report and the contact sheet."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from fluxexp.errors import FluxexpError
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.storage.result_files import CONTACT_SHEET, REPORT, SUMMARY, SWEEP
from fluxexp.storage.run_store import RunStore
from fluxexp.telemetry import Phase, say

_END_OF_PAGE = b"</html>"
_END_OF_PNG = b"IEND\xaeB`\x82"


def report_problem(session_plan: SessionPlan) -> str | None:
    """Why the report or the contact sheet must be made again; None if they are sound, or not wanted.

    A session that was killed after it wrote its summaries leaves the report of an earlier session, which is older.
    """
    if not session_plan.runs[0].plan.config.report.html:
        return None
    figures = SUMMARY if session_plan.sweep is None else SWEEP
    problem = _problem(session_plan.directory.store, REPORT, figures, _END_OF_PAGE)
    if session_plan.sweep is None:
        has_images = bool(session_plan.runs[0].num_resumed)
        store = session_plan.directory.store
        return problem or (_problem(store, CONTACT_SHEET, SUMMARY, _END_OF_PNG) if has_images else None)
    # The pages of all points together are too large to read.
    points = (_problem(run.plan.directory.store, REPORT, SUMMARY, None) for run in session_plan.runs)
    return problem or next((problem for problem in points if problem), None)


def _problem(store: RunStore, key: str, source: str, end: bytes | None) -> str | None:
    try:
        if not store.exists(key):
            return f"{store.address}/{key} is missing"
        if end is not None and not (store.get(key) or b"").rstrip().endswith(end):
            return f"{store.address}/{key} is damaged"
        if store.exists(source) and store.modified_ns(key) < store.modified_ns(source):
            return f"{store.address}/{key} is older than {source}"
    except OSError as error:
        return f"{store.address}/{key} cannot be read: {error}"
    return None


def is_written(write: Callable[[], object], what: str) -> bool:
    """Call `write`, and print why `what` could not be written. The other files are still written."""
    try:
        write()
    except (FluxexpError, OSError) as error:
        say(f"fluxexp: no {what}: {error}", urgent=True)
    except Exception:
        traceback.print_exc()  # unexpected: a developer needs the traceback
        say(f"fluxexp: no {what}", urgent=True)
    else:
        return True
    return False


def write_reports(session_plan: SessionPlan) -> bool:
    """Write the HTML report of the run or sweep, and a run's contact sheet. Returns whether all were written."""
    if not session_plan.runs[0].plan.config.report.html:
        return True
    from fluxexp.report import write_contact_sheet, write_report  # slow to import

    runs = [run.plan.directory for run in session_plan.runs]

    def report() -> None:
        with Phase("report", "page of the run" if session_plan.sweep is None else f"page of {len(runs)} points"):
            place = write_report(session_plan.directory.address, runs, session_plan.sweep)
        say(f"report     {place}")

    done = is_written(report, "report")
    if session_plan.sweep is None:
        done &= is_written(lambda: write_contact_sheet(runs[0]), "contact sheet")
    return done
