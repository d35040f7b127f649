"""The work of one rank: read, condition, denoise, decode, write. It knows its own tasks, but no other rank."""

from fluxexp.worker.assignment import Assignment, Queue, WorkOrder
from fluxexp.worker.attempt_logs import AttemptLogs
from fluxexp.worker.loop import Worker
from fluxexp.worker.prefetch import PreparedSample
from fluxexp.worker.replica_model import LeadingModel, follow
from fluxexp.worker.writer import ResultWriter

__all__ = [
    "Assignment",
    "AttemptLogs",
    "LeadingModel",
    "PreparedSample",
    "Queue",
    "ResultWriter",
    "WorkOrder",
    "Worker",
    "follow",
]
