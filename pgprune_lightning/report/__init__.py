"""Shows runs on one HTML page, and their policies as pictures on a W&B dashboard."""

from pgprune_lightning.report.included_files import read_included
from pgprune_lightning.report.page import policy_pictures, report_page
from pgprune_lightning.report.run_record import RunRecord, check_run, distinct_names, read_run

__all__ = [
    "RunRecord",
    "check_run",
    "distinct_names",
    "policy_pictures",
    "read_included",
    "read_run",
    "report_page",
]
