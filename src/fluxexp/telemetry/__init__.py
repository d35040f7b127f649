"""Measures what a rank does and how busy its device is. It does not know models, datasets or W&B."""

from fluxexp.telemetry.balance import Balance, RankLoad, balance
from fluxexp.telemetry.events import Event, EventLog, part_of_run
from fluxexp.telemetry.figures import RankFigures, idle_s
from fluxexp.telemetry.load_windows import Window, Windows
from fluxexp.telemetry.progress import Phase
from fluxexp.telemetry.reading import Probe, Reading
from fluxexp.telemetry.sampler import DeviceSampler, open_probe
from fluxexp.telemetry.slow_ranks import SlowRank, relative_speeds
from fluxexp.telemetry.tally import DeviceFigures
from fluxexp.telemetry.throughput import RankTotals, Totals
from fluxexp.terminal import say

__all__ = [
    "Balance",
    "DeviceFigures",
    "DeviceSampler",
    "Event",
    "EventLog",
    "Phase",
    "Probe",
    "RankFigures",
    "RankLoad",
    "RankTotals",
    "Reading",
    "SlowRank",
    "Totals",
    "Window",
    "Windows",
    "balance",
    "idle_s",
    "open_probe",
    "part_of_run",
    "relative_speeds",
    "say",
]
