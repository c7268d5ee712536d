"""What a person sees: the page in a real browser, served by the real server, over a daemon made for the test."""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.web import browser, training
from tests.daemon.web.fakes import FakeAlert

from vqwatch_daemon.history import History, Limits
from vqwatch_daemon.web import RunView, Server, create_app, serve

LINK = '<a href="https://another.example/">x</a>'
HOSTILE = "<img src=x onerror=\"window.hacked='run'\">"


@dataclass
class Stage:
    """A served fake daemon whose runs go on while the page looks."""

    daemon: Any
    server: Server
    app: Any
    runs: dict[str, Any]
    steps: dict[str, int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"

    def advance(self, by: int = 10) -> None:
        """Let every run take some steps."""
        now = time.time()
        views = []
        for name, source in list(self.runs.items()):
            self.steps[name] += by
            step = self.steps[name]
            self.daemon.run_readings[name] = readings = source.readings(step)
            self.daemon.run_usage[name] = {layer: counts.tolist() for layer, counts in source.usage(step).items()}
            layers = [
                {"name": str(i), "kind": "ema", "size": 256, "dim": 64, "family": "", "path": ""} for i in range(8)
            ]
            views.append(RunView(name, step, 2, 2, now - 100, now, "live", layers))
            self.daemon.store.record(name, step, now, readings)
            self.daemon.store.record_usage(name, step, now, source.usage(step))
        self.daemon.run_views = views

    def add(self, name: str, source: Any, past: int = 600) -> None:
        """Bring in a run with a past."""
        now = time.time()
        for step in range(0, past, 10):
            at = now - (past - step) / 5
            self.daemon.store.record(name, step, at, source.readings(step))
            if step % 100 == 0:
                self.daemon.store.record_usage(name, step, at, source.usage(step))
        self.daemon.store.flush()
        self.steps[name] = past
        self.runs[name] = source


@pytest.fixture
def stage(fake: Any, tmp_path: Path) -> Iterator[Stage]:
    """A daemon with one healthy run that takes ten steps a second."""
    fake.run_views, fake.run_readings, fake.run_usage, fake.run_alerts = [], {}, {}, []
    fake.store = History(tmp_path / "history.db", limits=Limits(flush_seconds=0.5))
    app = create_app(fake, metrics=lambda _accept: ("text/plain", b""))
    with fake.store, serve(app, port=0) as server:
        made = Stage(fake, server, app, {}, {})
        made.add("first", training.Training(0))
        stop = threading.Event()

        def live() -> None:
            while not stop.is_set():
                made.advance()
                stop.wait(0.5)

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        yield made
        stop.set()
        thread.join(5)


@pytest.fixture(scope="module")
def window(tmp_path_factory: Any) -> Iterator[Any]:
    """One browser for all tests of this module."""
    browser.need_browser()
    with browser.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(window: Any, stage: Stage) -> Iterator[Any]:
    """The page, with its first curve drawn; the browser's console must stay clean."""
    window.get(stage.url)
    browser.until(window, "return document.querySelectorAll('.tile').length >= 8")
    yield window
    found = browser.complaints(window)
    window.get("about:blank")
    assert found == []


def drawn(page: Any, *metrics: str) -> None:
    """Bring the first charts to the screen and wait for one, or for each of those named."""
    browser.until(
        page,
        "document.querySelector('#charts section')?.scrollIntoView();"
        "const wanted = arguments[0].map(name => `[data-metric=${name}] .plot .main-svg`);"
        "return (wanted.length ? wanted : ['.plot .main-svg']).every(chart => document.querySelector(chart))",
        15,
        metrics,
    )


def text(page: Any, selector: str) -> str:
    """Return the text that an element shows."""
    return str(page.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def test_the_first_screen_answers_the_question(page: Any) -> None:
    browser.until(page, "return document.querySelectorAll('.heatmap canvas').length > 0")
    assert "first" in text(page, ".verdict")
    assert "step" in text(page, ".verdict")
    tiles = page.execute_script("return [...document.querySelectorAll('.tile')].map(t => [t.dataset.key, t.innerText])")
    assert {key for key, _ in tiles} >= {"utilization", "perplexity", "dead", "reconstruction", "loss", "gradients"}
    words = {"healthy", "concerning", "critical", "no bands", "no evidence"}
    assert all(any(word in shown for word in words) for _, shown in tiles), "a verdict is never told by colour alone"


@pytest.mark.alone
def test_paint_and_data_come_early_and_plotly_after(page: Any) -> None:
    drawn(page)
    timing = page.execute_script(
        "const at = (name) => performance.getEntriesByType('resource').find(e => e.name.includes(name));"
        "const paint = performance.getEntriesByType('paint').find(e => e.name === 'first-contentful-paint');"
        "return {paint: paint.startTime, plotly: at('plotly').startTime, size: at('plotly').transferSize}"
    )
    print(json.dumps(timing))
    assert timing["paint"] < timing["plotly"]
    assert timing["size"] < 1_700_000


def test_nothing_comes_from_another_host(page: Any, stage: Stage) -> None:
    drawn(page)
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    foreign = {url for url in asked if not url.startswith((stage.url, "data:", "about:", "blob:", "chrome"))}
    assert {url for url in foreign if "127.0.0.1" not in url} == set()


def test_the_curves_reach_back_before_the_page_was_opened(page: Any) -> None:
    drawn(page)
    steps = browser.until(
        page,
        "const p = document.querySelector('[data-metric=codebook_utilization_ratio] .plot');"
        "const x = p?.data?.[0]?.x; return x && x.length > 40 && [x[0], x[x.length - 1]]",
    )
    assert steps[0] <= 20
    assert steps[1] >= 600


def test_the_heatmap_follows_the_training(page: Any, stage: Stage) -> None:
    script = "return document.querySelector('.plane canvas')?.toDataURL()"
    before = browser.until(page, script)
    browser.until_true(lambda: page.execute_script(script) not in (None, before), 10, "the heatmap changed")


def test_usage_can_be_scrubbed_back_and_released(page: Any) -> None:
    browser.until(page, "return !document.getElementById('scrub').hidden", 20)
    page.execute_script(
        "const s = document.getElementById('when'); s.value = 1; s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    browser.until(page, "return document.querySelector('.heatmap').dataset.step === '100'")
    assert "step 100" in text(page, "#when-text")
    page.execute_script("document.getElementById('now').click()")
    browser.until(page, "return document.querySelector('.heatmap').dataset.step === 'now'")


def test_the_heatmap_can_be_read_by_keyboard(page: Any) -> None:
    browser.until(page, "return document.querySelector('.plane canvas') && true")
    page.execute_script("document.querySelector('.plane canvas').focus()")
    page.execute_script("window.label = document.querySelector('.rows span')")
    browser.until(page, "return !window.label.isConnected")  # drawn again: who walks with the keys stays where they are
    assert page.execute_script("return document.activeElement === document.querySelector('.plane canvas')")
    keys = importlib.import_module("selenium.webdriver.common.keys").Keys
    page.switch_to.active_element.send_keys(keys.ARROW_RIGHT, keys.ARROW_RIGHT, keys.ARROW_DOWN)
    browser.until(page, "return document.querySelector('.said').innerText.startsWith('layer 1, code 1:')")


def test_an_alert_appears_with_its_runbook_and_clears(page: Any, stage: Stage, fake: Any) -> None:
    fake.run_alerts = [FakeAlert(run="first")]
    browser.until(page, "return document.querySelector('.alert[data-state=firing]') && true")
    assert "CodebookCollapse" in text(page, ".verdict")
    assert "critical" in text(page, ".alert")
    link = page.execute_script("return document.querySelector('.alert a').getAttribute('href')")
    assert link == "/runbooks/CodebookCollapse"
    fake.run_alerts = []
    browser.until(page, "return !document.querySelector('.alert[data-state=firing]')")


def test_one_alert_in_many_layers_is_told_once(page: Any, fake: Any) -> None:
    fake.run_alerts = [FakeAlert(run="first", labels={"layer": str(i)}) for i in (10, 2, 0)]
    browser.until(page, "return document.querySelector('.alert[data-state=firing]') && true")
    assert page.execute_script("return document.querySelectorAll('.alert').length") == 1
    assert "layer 0, 2, 10" in text(page, ".alert")


def test_a_zoom_survives_updates_reaches_every_chart_and_can_be_reset(page: Any) -> None:
    drawn(page, "codebook_utilization_ratio", "codebook_perplexity")
    page.execute_script(
        "const p = document.querySelector('[data-metric=codebook_utilization_ratio] .plot');"
        "Plotly.relayout(p, {'xaxis.range[0]': 100, 'xaxis.range[1]': 300})"
    )
    browser.until(page, "return !document.getElementById('reset').hidden")
    ticks = int(page.execute_script("return document.body.dataset.ticks"))
    browser.until(page, "return Number(document.body.dataset.ticks) > arguments[0] + 2", 15, ticks)
    ranges = page.execute_script(
        "return ['codebook_utilization_ratio', 'codebook_perplexity'].map(m => document"
        ".querySelector(`[data-metric=${m}] .plot`).layout.xaxis.range)"
    )
    assert ranges == [[100, 300], [100, 300]]
    page.execute_script("document.getElementById('reset').click()")
    browser.until(
        page,
        "const r = document.querySelector('[data-metric=codebook_perplexity] .plot').layout.xaxis.range;"
        "return r[0] < 50 && r[1] > 500",
    )


def test_a_second_run_appears_and_is_shown_beside_the_first(page: Any, stage: Stage) -> None:
    stage.add("second", training.Training(1))
    browser.until(page, "return document.querySelectorAll('.run').length === 2")
    page.execute_script("[...document.querySelectorAll('.run')].find(r => r.dataset.run === 'second').click()")
    browser.until(page, "return document.querySelectorAll('.overview').length === 2")
    browser.until(page, "return document.querySelectorAll('.heatmap').length === 2")
    drawn(page)
    browser.until(
        page,
        "document.querySelector('#charts section').scrollIntoView();"
        "const p = document.querySelector('[data-metric=codebook_utilization_ratio] .plot');"
        "return p?.layout?.xaxis2?.matches === 'x'",
    )


def test_curves_can_be_drawn_over_time(page: Any) -> None:
    drawn(page)
    page.execute_script("document.getElementById('axis').click()")
    browser.until(
        page,
        "const p = document.querySelector('[data-metric=codebook_utilization_ratio] .plot');"
        "return p?._fullLayout?.xaxis?.type === 'date'",
    )


def test_dark_and_light_are_one_key_away(page: Any) -> None:
    before = page.execute_script("return document.documentElement.dataset.theme")
    page.find_element("css selector", "body").send_keys("d")
    browser.until(page, "return document.documentElement.dataset.theme !== arguments[0]", 5, before)


@pytest.mark.parametrize(("width", "scale"), [(360, 1), (640, 2)])
def test_a_phone_and_200_percent_zoom_need_no_sideways_scrolling(page: Any, width: int, scale: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": scale, "mobile": scale == 1}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        drawn(page)
        browser.until(page, "return document.documentElement.scrollWidth <= arguments[0] + 1", 10, width)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_recovers_when_the_daemon_restarts(window: Any, stage: Stage) -> None:
    window.get(stage.url)
    browser.until(window, "return document.getElementById('pulse').dataset.state === 'live'")
    port = stage.server.port
    stage.server.close()
    browser.until(window, "return document.getElementById('pulse').dataset.state === 'lost'", 15)
    again = create_app(stage.daemon, metrics=lambda _accept: ("text/plain", b""))
    with serve(again, port=port):
        browser.until(window, "return document.getElementById('pulse').dataset.state === 'live'", 15)
        window.get("about:blank")
    window.get_log("browser")  # refused connections are what this test is about


def test_hostile_names_are_shown_and_never_run(window: Any, stage: Stage, fake: Any) -> None:
    evil = training.Training(2)
    stage.add(HOSTILE, evil)
    script = "<script>window.hacked='alert'</script>"
    fake.run_alerts = [
        FakeAlert(
            name="javascript:alert(1)//",
            run=HOSTILE,
            labels={"layer": HOSTILE},
            annotations={"summary": script, "description": script, "runbook_url": "javascript:window.hacked='link'"},
        )
    ]
    plain = evil.readings

    def readings(step: int) -> Any:
        values = plain(step)
        values["codebook_utilization_ratio"] = {(f"{LINK}{HOSTILE}{i}",): 0.5 for i in range(3)}
        values["codebook_usage_correlation"] = {(HOSTILE, "<b>other</b>"): 0.5}
        values["loss"][HOSTILE,] = 1.0
        return values

    evil.readings = readings
    window.get(f"{stage.url}#run={HOSTILE}".replace("<", "%3C").replace(">", "%3E").replace('"', "%22"))
    browser.until(window, "return document.querySelector('.verdict')?.innerText.includes('<img src=x')")
    browser.until(window, "return document.querySelector('.alert p')?.innerText.includes('<script>')")
    drawn(window)
    browser.until(window, "return document.querySelector('.plot .legendtext, .plot .infolayer') && true")
    time.sleep(2)  # whatever would run has had its time
    assert window.execute_script("return window.hacked ?? null") is None
    assert window.execute_script("return document.querySelectorAll('main img, main script, main b a').length") == 0
    links = window.execute_script(
        "return [...document.querySelectorAll('main a')].map(a => a.href?.baseVal ?? a.href).filter(Boolean)"
    )
    assert all(link.startswith(stage.url) for link in links)
    assert browser.complaints(window) == []
