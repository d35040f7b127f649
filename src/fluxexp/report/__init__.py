"""An HTML report and a contact sheet of finished runs, made from their files. Imports no torch."""

from fluxexp.report.contact_sheet import write_contact_sheet
from fluxexp.report.write import write_report

__all__ = ["write_contact_sheet", "write_report"]
