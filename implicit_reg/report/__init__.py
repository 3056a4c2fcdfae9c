"""One self-contained HTML page from a command's record: to read on a screen, to print, to hand on.

Nothing is fetched from anywhere, and no script runs. Whatever comes from the record is escaped.
"""

from implicit_reg.report._document import verify_report
from implicit_reg.report._reproduction import reproduction_report, reproductions_report, reproductions_table

__all__ = ["reproduction_report", "reproductions_report", "reproductions_table", "verify_report"]
