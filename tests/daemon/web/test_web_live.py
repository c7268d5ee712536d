"""The whole way: a real training, a real daemon and a real browser, each a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.web import browser
from tests.watching import Daemon, TrainingProcess

pytestmark = pytest.mark.alone

RATE = ("--rate", "60")
FIRING = (
    "[...document.querySelectorAll('.alert[data-state=firing]')].find(a => a.innerText.includes('VqLossNotFinite'))"
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that keeps a history."""
    with Daemon(tmp_path / "daemon", state=True) as started:
        yield started


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Any]:
    """A browser."""
    browser.need_browser()
    with browser.chromium(tmp_path / "profile", 1280, 1200) as driver:
        yield driver


def test_a_person_watches_a_fault_its_end_a_second_run_and_a_restart(daemon: Daemon, window: Any) -> None:
    fault = ("--fault", "nan-loss@120:180")
    with TrainingProcess(daemon.endpoint, "first", "--steps", "100000", *RATE, *fault):
        daemon.wait_for_step("first", 20)
        window.get(daemon.url)
        browser.until(window, "return document.querySelectorAll('.tile').length >= 8")
        heat = "return document.querySelector('.plane canvas')?.toDataURL()"
        early = browser.until(window, heat, 20)
        assert "first" in browser.until(window, "return document.querySelector('.verdict').innerText")

        told = browser.until(window, f"return {FIRING}?.innerText", 60)
        assert "runbook" in told
        assert window.execute_script(heat) != early
        assert window.execute_script("return document.querySelector('.verdict').dataset.verdict") == "critical"
        runbook = window.execute_script(f"return {FIRING}.querySelector('a').href")
        first_tab = window.current_window_handle
        window.switch_to.new_window("tab")
        window.get(runbook)
        assert "VqLossNotFinite" in window.find_element("css selector", "h1").text
        window.close()
        window.switch_to.window(first_tab)
        browser.until(window, f"return !{FIRING}", 60)

        with TrainingProcess(daemon.endpoint, "second", "--steps", "100000", *RATE):
            browser.until(window, "return document.querySelectorAll('.run').length === 2", 30)
            assert browser.complaints(window) == []

            drawn = (
                "document.querySelector('#charts section')?.scrollIntoView();"
                "const p = document.querySelector('[data-metric=codebook_utilization_ratio] .plot');"
                "const x = p?.data?.[0]?.x ?? []; return x.length ? [x[0], x[x.length - 1]] : null"
            )
            before = browser.until(window, drawn)
            daemon.kill()
            browser.until(window, "return document.getElementById('pulse').dataset.state === 'lost'", 20)
            daemon.start()
            browser.until(window, "return document.getElementById('pulse').dataset.state === 'live'", 20)
            browser.until_true(
                lambda: (now := window.execute_script(drawn)) and now[0] <= before[0] + 30 and now[1] > before[1] + 30,
                30,
                f"the curve goes on where it was, {before}; now {window.execute_script(drawn)}",
            )
