"""Pictures of finished runs, made from what lies on disk: an HTML report and a contact sheet. Imports no torch."""

from fluxexp.report.contact_sheet import contact_sheet
from fluxexp.report.write import write_report

__all__ = ["contact_sheet", "write_report"]
