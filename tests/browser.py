"""Chromium without a window, for tests of pages."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.tiny import ROOT

AXE = ROOT / "build" / "axe-core" / "axe.min.js"
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    DRIVER is None, reason="there is no Chromium: apt-get install chromium chromium-driver")
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="there is no axe-core: make build/axe-core")


@contextlib.contextmanager
def started(downloads):
    """A browser. downloads: where files go."""
    options = webdriver.ChromeOptions()
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser.downloads = downloads
    browser.execute_cdp_cmd("Browser.grantPermissions", {
        "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    try:
        yield browser
    finally:
        browser.quit()


def in_the_way(browser):
    """Of the page that is open: (what axe-core finds in the way of those who see or move
    otherwise, how many of its rules hold)"""
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    return {each["id"]: [node["html"] for node in each["nodes"]][:3]
            for each in found["violations"] if each["impact"] in ("serious", "critical")
            }, len(found["passes"])
