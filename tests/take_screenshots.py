"""Takes the README's pictures: a healthy and a failing run, desktop and phone, light and dark.

    python -m tests.take_screenshots        # look at them before you commit them

A real daemon, a real training and a real browser; needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from tests.daemon.web import browser
from tests.watching import ROOT, Daemon, TrainingProcess

OUTPUT = ROOT / "deploy" / "screenshots"
DESKTOP, PHONE = (1280, 1500), (420, 1400)
SETTLE_SECONDS = 6.0


def shoot(driver: Any, url: str, name: str, scheme: str) -> None:
    """Take one picture of the page, once its charts are drawn."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get(url)
    browser.until(driver, "return document.querySelectorAll('.tile').length >= 7", 30)
    browser.until(driver, "return document.querySelector('.plane canvas') !== null", 30)
    if name.endswith("desktop"):  # on a phone the charts come later, when one scrolls to them
        browser.until(driver, "return document.querySelector('.js-plotly-plot') !== null", 60)
    time.sleep(SETTLE_SECONDS)
    path = OUTPUT / f"{name}-{scheme}.png"
    driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def main() -> None:
    """Train, break, and take the pictures."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        Daemon(Path(directory) / "daemon", state=True) as daemon,
        TrainingProcess(
            daemon.endpoint, "documents", "--steps", "100000", "--rate", "30", "--fault", "collapse@700:2000"
        ),
        browser.chromium(Path(directory) / "wide", *DESKTOP) as wide,
        browser.chromium(Path(directory) / "narrow", *PHONE) as narrow,
    ):
        daemon.wait_for_step("documents", 550, 300)
        shoot(wide, daemon.url, "healthy-desktop", "light")
        shoot(narrow, daemon.url, "healthy-phone", "dark")
        daemon.wait_for_step("documents", 840, 300)
        shoot(wide, daemon.url, "failing-desktop", "light")
        shoot(narrow, daemon.url, "failing-phone", "dark")


if __name__ == "__main__":
    main()
