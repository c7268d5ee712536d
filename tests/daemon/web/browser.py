"""A headless Chromium for the tests of the page, and how they wait for what a person would see."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def need_browser() -> None:
    """Skip where there is no browser; fail under CI."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: chromium, chromium-driver)")


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Start a browser with an empty profile."""
    webdriver = importlib.import_module("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(10)
        yield driver
    finally:
        driver.quit()


def until(driver: Any, script: str, timeout: float = 15.0, *arguments: Any) -> Any:
    """Return what ``script`` returns as soon as that is true."""
    return until_true(lambda: driver.execute_script(script, *arguments), timeout, script)


def until_true(act: Callable[[], Any], timeout: float = 15.0, what: str = "") -> Any:
    """Return what ``act`` returns as soon as that is true; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := act()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what}")
        time.sleep(0.05)
    return answer


def complaints(driver: Any) -> list[str]:
    """Return the errors in the browser's console: exceptions, refused scripts, failed requests."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
