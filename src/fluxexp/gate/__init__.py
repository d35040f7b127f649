"""`python -m fluxexp.gate CANDIDATE REFERENCE`: is the fast version still good (docs/gate.md)?"""

from fluxexp.gate.gate_check import check_gate
from fluxexp.gate.gate_result import GateResult

__all__ = ["GateResult", "check_gate"]
