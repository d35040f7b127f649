"""Pictures of finished runs, made from what lies on disk. Imports no torch."""

from fluxexp.report.contact_sheet import contact_sheet

__all__ = ["contact_sheet"]
