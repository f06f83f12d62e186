"""Pages to look at: what a run did, what a dataset holds, what happens inside a model.

Each is one HTML file that asks for nothing: `page` is their shell, `chart` what all of them draw
with, and each page has a module.
"""

from gpt.reports.inside import CONTROLS, look_page
from gpt.reports.page import Page
from gpt.reports.pictures import write_pictures
from gpt.reports.reporting import (
    charts,
    figures,
    finite,
    place_of,
    refuse_no_place,
    report,
    report_at_end,
    watch,
)

__all__ = ["CONTROLS", "Page", "charts", "figures", "finite", "look_page", "place_of",
           "refuse_no_place", "report", "report_at_end", "watch", "write_pictures"]
