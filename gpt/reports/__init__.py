"""Pages to look at: what a run did, what a dataset holds, what happens inside a model.

Each is one HTML file that asks for nothing: `page` is their shell, `chart` what all of them draw
with, and each page has a module.
"""

from gpt.reports.history import History, is_run, read_history
from gpt.reports.page import Page

__all__ = ["History", "Page", "is_run", "read_history"]
