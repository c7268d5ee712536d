"""What the page costs: the daemon's processor time with 0 and 20 open pages, its first paint, its weight.

    python -m tests.benchmarks.page

A real daemon under the example training at 25 steps a second; pages are event streams with the requests that a page
makes beside them, and one headless Chromium (Debian's chromium and chromium-driver). One line of JSON.
"""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.daemon.web import browser
from tests.watching import Daemon, TrainingProcess

RUN, PAGES, SECONDS = "pages", 20, 15.0
TILES = "return document.querySelectorAll('.tile').length >= 8"
FIRST_CHART = (
    "document.querySelector('#charts section')?.scrollIntoView();"
    "return document.querySelectorAll('.plot .main-svg').length > 0"
)
FIGURES = """
const entries = performance.getEntriesByType('resource');
const sum = list => list.reduce((total, entry) => total + entry.transferSize, 0);
return {
  first_paint_ms: Math.round(performance.getEntriesByName('first-contentful-paint')[0].startTime),
  page_bytes: performance.getEntriesByType('navigation')[0].transferSize
    + sum(entries.filter(e => !e.name.includes('plotly') && !e.name.includes('/api/'))),
  chart_library_bytes: sum(entries.filter(e => e.name.includes('plotly'))),
  data_bytes: sum(entries.filter(e => e.name.includes('/api/'))),
};
"""


def busy(daemon: Daemon) -> float:
    """Return the share of a core that the daemon uses now."""
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat")

    def seconds() -> float:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    began, used = time.monotonic(), seconds()
    time.sleep(SECONDS)
    return (seconds() - used) / (time.monotonic() - began)


def listen(port: int) -> None:
    """Be an open page without its drawing: follow the events, and ask for the usage every three seconds."""
    events = http.client.HTTPConnection("127.0.0.1", port)
    events.request("GET", f"/api/events?run={RUN}")
    stream, asked = events.getresponse(), time.monotonic()
    while stream.read1(65_536):
        if time.monotonic() - asked > 3:
            asked = time.monotonic()
            usage = http.client.HTTPConnection("127.0.0.1", port)
            usage.request("GET", f"/api/runs/{RUN}/usage?order=index&columns=1024", headers={"accept-encoding": "gzip"})
            usage.getresponse().read()
            usage.close()


def opened(daemon: Daemon, profile: Path) -> dict[str, Any]:
    """Return what one browser sees of the page while it loads."""
    with browser.chromium(profile, 1280, 900) as window:
        window.get(daemon.url)
        browser.until(window, TILES, 30)
        tiles = window.execute_script("return Math.round(performance.now())")
        browser.until(window, FIRST_CHART, 60)
        chart = window.execute_script("return Math.round(performance.now())")
        return {"live_tiles_ms": tiles, "first_chart_ms": chart, **window.execute_script(FIGURES)}


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Daemon(Path(directory) / "daemon", state=True) as daemon,
        TrainingProcess(daemon.endpoint, RUN, "--steps", "100000", "--rate", "25"),
    ):
        daemon.wait_for_step(RUN, 60, 120)
        found: dict[str, Any] = {"core_share_without_pages": busy(daemon)}
        found |= opened(daemon, Path(directory) / "profile")
        for _ in range(PAGES):
            threading.Thread(target=listen, args=(daemon.port,), daemon=True).start()
        time.sleep(2)
        found[f"core_share_with_{PAGES}_pages"] = busy(daemon)
        print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
