"""Watches the live page in a real browser, through everything that its test does to the servers behind it.

    watch.py URL PICTURES

The test starts this and follows its lines: each "now: …" asks for something to happen (a server killed, traffic stopped),
and this goes on when the page shows it. It fails when the page does not, when the page complains in the browser's console,
or when it asks another host for anything.
"""

import os
import shutil
import sys
import time
from urllib.parse import urlparse

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

PATIENCE_MS = 60_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def say(words: str) -> None:
    print(words, flush=True)


def browser_program() -> str | None:
    """What is installed; None: playwright's own, where it is."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Watcher:
    """A page, and what it must not do."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        # A server that is away is a complaint of the browser, not of the page.
        self.server_is_there = True
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self.asked)

    def heard(self, message) -> None:
        if message.type in ("error", "warning") and self.server_is_there:
            self.complaints.append(f"{message.type}: {message.text}")

    def asked(self, request) -> None:
        if urlparse(request.url).netloc != urlparse(self.url).netloc and not request.url.startswith("data:"):
            self.foreign.append(request.url)

    def wait_for(self, selector: str) -> None:
        self.page.wait_for_selector(selector, timeout=PATIENCE_MS)

    def figure(self, name: str):
        return self.page.locator("#figures div", has_text=name).locator("dd span")

    def number(self, name: str) -> int:
        text = self.figure(name).inner_text().replace(",", "")
        return int(text) if text.isdigit() else 0

    def press(self, name: str, outcome: str) -> None:
        """Presses a button until it is answered so: a process may be slow to answer, and say so."""
        told = self.page.locator("#fault-outcome")
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while True:
            self.page.get_by_role("button", name=name).click()
            try:
                expect(told).to_contain_text(outcome, timeout=3000)
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def wait_until_more(self, name: str, than: int) -> None:
        self.page.wait_for_function(
            """([name, than]) => [...document.querySelectorAll('#figures div')].some((box) =>
                box.firstChild.textContent === name && Number(box.querySelector('span').textContent.replaceAll(',', '')) > than)""",
            arg=[name, than], timeout=PATIENCE_MS)


def check_faults(watcher: Watcher) -> None:
    """Each button does what it says, and the totals meet again."""
    duplicates, crashes = watcher.number("Duplicates skipped"), watcher.number("Crashes survived")
    watcher.press("Send a batch twice", "streamer will send its next batch twice")
    watcher.wait_until_more("Duplicates skipped", duplicates)
    say("faults: sent twice")
    watcher.press("Crash consumer1", "consumer1 will crash in its next batch")
    watcher.wait_until_more("Crashes survived", crashes)
    say("faults: crashed")
    watcher.press("Wipe the stream", "the stream is wiped")
    say("faults: ordered and seen")


def check_keyboard(page: Page) -> None:
    """Everything can be reached and used without a mouse, and where one is can be seen."""
    page.mouse.click(2, 2)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip", "the first stop is the way past the rest"
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim().slice(0, 30)"))
        if page.evaluate("document.activeElement.dataset.minutes === '1'"):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", f"the focus cannot be seen: {outline}"
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    for name in ["Send a batch twice", "Wipe the stream", "Crash", "1 minute", "10 minutes", "/state"]:
        assert name in reached, f"{name} cannot be reached by keyboard: {reached}"
    page.get_by_role("button", name="10 minutes").click()


def check_looks(watcher: Watcher, pictures: str) -> None:
    """Light and dark, wide and narrow: readable for everybody, and nothing beside the edge."""
    page = watcher.page
    for scheme in ["light", "dark"]:
        for kind, width, height in [("wide", 1280, 1000), ("phone", 375, 800)]:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            # Functions: an expression would be looked at by eval if it does not hold at once, and the page's policy forbids that.
            page.wait_for_function("() => document.querySelectorAll('#plots canvas').length === 4")
            # The plots follow the width, and draw in the colours of the scheme.
            page.wait_for_function("() => [...document.querySelectorAll('.plot')].every((plot) => "
                                   "Math.abs(plot.querySelector('.uplot').offsetWidth - plot.clientWidth) <= 1)")
            too_wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert too_wide <= 0, f"{scheme}, {kind}: {too_wide} pixels are beside the page"
            found = Axe().run(page)
            assert found.violations_count == 0, f"{scheme}, {kind}: {found.generate_report()}"
            page.screenshot(path=f"{pictures}/dashboard-{scheme}-{kind}.png", full_page=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 1000})


def check_plots(page: Page) -> None:
    """Something is drawn: each plot has pixels of the colours of its lines."""
    for plot in ["offsets", "lag", "totals", "rate"]:
        colours = page.evaluate(
            """(id) => { const canvas = document.querySelector(`#plot-${id} canvas`);
                const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                const seen = new Set();
                for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) seen.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
                return seen.size; }""", plot)
        assert colours > 3, f"plot {plot} shows {colours} colours"


def watch(watcher: Watcher, pictures: str) -> None:
    page = watcher.page
    page.goto(watcher.url)
    watcher.wait_for("body[data-link=live]")
    say("live")
    watcher.wait_until_more("Rides, by SQL", 0)
    page.wait_for_function("() => document.querySelectorAll('#consumer-rows tr').length === 3", timeout=PATIENCE_MS)
    check_faults(watcher)

    say("now: no more traffic")
    # It may converge for a moment before the traffic has ended.
    page.wait_for_function("""() => document.body.dataset.verdict === 'converged' && [...document.querySelectorAll('#figures div')]
        .some((box) => box.firstChild.textContent === 'Rides a second' && box.querySelector('span').textContent === '0.0')""",
                           timeout=PATIENCE_MS)
    assert page.locator("#verdict-text").inner_text() == "Converged"
    assert page.locator("#consumer-rows .agrees").count() == 3, "each total is marked as SQL's"
    say(f"converged: {watcher.figure('Rides, by SQL').inner_text()} rides, {watcher.figure('Distance, by SQL').inner_text()}")
    check_plots(page)
    check_keyboard(page)
    check_looks(watcher, pictures)

    say("now: kill Redis")
    watcher.wait_for("#processes li[data-state=down]:has-text('Redis')")
    say("now: start Redis")
    watcher.wait_for("#processes li[data-state=up]:has-text('Redis')")
    say("now: kill Postgres")
    watcher.wait_for("body[data-verdict=unknown]")
    assert page.locator("#verdict-text").inner_text() == "Postgres does not answer"
    assert page.locator("#consumer-rows tr").count() == 3, "what was known last stays"
    say("now: start Postgres")
    watcher.wait_for("body[data-verdict=converged]")

    say("now: stop the page's server for a while")
    watcher.wait_for("body[data-link=stale]")
    say("now: let it go on")
    watcher.wait_for("body[data-link=live]")
    count_before = page.evaluate("document.querySelectorAll('#consumer-rows tr').length")
    watcher.server_is_there = False
    say("now: kill the page's server")
    watcher.wait_for("body[data-link=lost]")
    say("now: start the page's server")
    watcher.wait_for("body[data-link=live][data-verdict=converged]")
    watcher.server_is_there = True
    assert page.evaluate("document.querySelectorAll('#consumer-rows tr').length") == count_before

    # The new server has another token; the page has asked for it.
    watcher.press("Send a batch twice", "streamer will send its next batch twice")
    rides = watcher.number("Rides, by SQL")
    say("now: one more ride")
    watcher.wait_until_more("Rides, by SQL", rides)
    watcher.wait_for("body[data-verdict=converged]")


def main() -> None:
    url, pictures = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_program(), args=FLAGS)
        watcher = Watcher(browser.new_page(), url)
        watch(watcher, pictures)
        browser.close()
    assert not watcher.foreign, f"asked elsewhere: {watcher.foreign}"
    assert not watcher.complaints, f"in the console: {watcher.complaints}"
    say("seen everything")


if __name__ == "__main__":
    main()
