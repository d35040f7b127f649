"""One rank at work: read, condition, denoise, decode, write. Knows its own tasks and nothing of other ranks."""

from fluxexp.worker.assignment import Assignment, Queue, WorkOrder
from fluxexp.worker.loop import Worker
from fluxexp.worker.prefetch import PreparedSample
from fluxexp.worker.replica_model import LeadingModel, follow
from fluxexp.worker.writer import ResultWriter

__all__ = ["Assignment", "LeadingModel", "PreparedSample", "Queue", "ResultWriter", "WorkOrder", "Worker", "follow"]
