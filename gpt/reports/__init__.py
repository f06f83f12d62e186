"""Pages to look at: what a run did, what a dataset holds, what happens inside a model.

Each is one HTML file that asks for nothing: `page` is their shell, `chart` what all of them draw
with, and each page has a module.
"""

from gpt.reports.history import read_history
from gpt.reports.page import Page
from gpt.reports.pictures import write_pictures
from gpt.reports.report import charts, figures, place_of, report, report_at_end, watch
from gpt.reports.terminal import drawn_curves, runs_in, table_of

__all__ = ["Page", "charts", "drawn_curves", "figures", "place_of", "read_history", "report",
           "report_at_end", "runs_in", "table_of", "watch", "write_pictures"]
