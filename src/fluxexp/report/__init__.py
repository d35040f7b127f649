"""Writes an HTML report and a contact sheet of a run from the files in its directory. Does not import torch."""

from fluxexp.report.contact_sheet import write_contact_sheet
from fluxexp.report.write import write_report

__all__ = ["write_contact_sheet", "write_report"]
