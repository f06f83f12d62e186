"""stub"""
from pathlib import Path
from typing import Any

from gpt.reports.page import Page


def dataset_page(folder: Path) -> Page: return Page("")
def dataset_figures(folder: Path) -> dict[str, Any]: return {}
