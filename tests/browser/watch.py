"""Watches the live page in a real browser, through everything that its test does to the servers behind it.

    watch.py URL PICTURES

The test starts this program and follows its lines. Each "now: …" asks the test to do something (kill a server, stop traffic), and
the program goes on when the page shows it. It fails when the page does not show it, when the page complains in the browser's
console, or when the page asks another host for anything.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from urllib.parse import urlparse

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from wide import check_wide_figures

# Less than the test waits for a line of this program, so that this program says what the page did not show.
PATIENCE_MS = 50_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def say(words: str) -> None:
    print(words, flush=True)


def browser_program() -> str | None:
    """The browser of this machine; None: the one that playwright has installed."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Watcher:
    """A page. It remembers every complaint and every request to another host."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        # While the page's server is away, the browser complains, and not the page.
        self.server_is_there = True
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self.asked)

    def heard(self, message) -> None:
        # A process that is too slow to answer refuses its order with 409, which the browser notes. `press` then asks again.
        is_refused_order = message.location["url"].endswith("/faults") and "409 (Conflict)" in message.text
        if message.type in ("error", "warning") and self.server_is_there and not is_refused_order:
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
        """Presses a button until the page shows `outcome`. A process may be slow, and the page then shows another one."""
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


    def opened_again(self) -> None:
        """Loads the page anew. It has nothing then but the server's word."""
        self.page.goto(self.url)
        self.wait_for("body[data-link=live]")

    def wait_for_event(self, pattern: str) -> None:
        """Waits until a recent event has this text."""
        expect(self.page.locator("#incidents li", has_text=re.compile(pattern)).first).to_be_visible(timeout=PATIENCE_MS)

    def process(self, name: str):
        """The item of a server or a process."""
        return self.page.locator("#processes li").filter(has=self.page.locator(".name", has_text=re.compile(f"^{name}$")))

    def pid(self, name: str) -> int:
        """The process id that the page shows."""
        note = self.process(name).locator("small")
        expect(note).to_contain_text(re.compile(r"\bpid \d+"), timeout=PATIENCE_MS)
        return int(re.search(r"\bpid (\d+)", note.inner_text()).group(1))


def check_pids(watcher: Watcher) -> None:
    """The shown process ids are those of the processes."""
    for name, program in [("streamer", "streamer"), ("consumer0", "consumer consumer0"), ("consumer2", "consumer consumer2")]:
        command = subprocess.check_output(["ps", "-o", "args=", "-p", str(watcher.pid(name))], text=True)
        assert program in command, f"the pid of {name} is that of {command}"


def check_restart(watcher: Watcher) -> None:
    """A killed process is told of under the verdict; a new one is told of with its process id."""
    before = watcher.pid("consumer1")
    say("now: kill consumer1")
    expect(watcher.page.locator("#outages")).to_have_text("consumer1 does not answer.", timeout=PATIENCE_MS)
    expect(watcher.process("consumer1")).to_contain_text(f"was pid {before}")
    watcher.wait_for_event("consumer1 stopped answering")
    say("now: start consumer1")
    watcher.wait_for_event("consumer1 restarted: process ")
    after = watcher.pid("consumer1")
    assert after != before, "another process has another id"
    watcher.wait_for_event(f"consumer1 restarted: process {after} replaces {before}$")
    expect(watcher.page.locator("#outages")).to_have_text("", timeout=PATIENCE_MS)


def check_events(watcher: Watcher) -> None:
    """The list has each fault that was ordered, the newest first, and a page that is opened later has the same list."""
    faults = ["streamer sent .+ twice", "consumer1 survived ", "the stream was wiped", "the stream was rebuilt.*, up to offset [0-9,]+"]
    for fault in faults:
        watcher.wait_for_event(fault)
    watcher.opened_again()
    for fault in faults:
        watcher.wait_for_event(fault)
    times = watcher.page.locator("#incidents time").evaluate_all("(times) => times.map((time) => time.dateTime)")
    assert len(times) >= len(faults) and times == sorted(times, reverse=True), f"the newest is first: {times}"


def check_faults(watcher: Watcher) -> None:
    """Each button does what it says, and the totals become equal again."""
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
    """Everything can be reached and used without a mouse, and the focus is visible."""
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
    reached_list = page.locator("#incidents").evaluate("(list) => list.tabIndex === 0")
    assert reached_list, "the list of events cannot be scrolled by keyboard"
    for name in ["Send a batch twice", "Wipe the stream", "Crash", "1 minute", "10 minutes", "/state"]:
        assert name in reached, f"{name} cannot be reached by keyboard: {reached}"
    page.get_by_role("button", name="10 minutes").click()


def check_looks(watcher: Watcher, pictures: str) -> None:
    """Light and dark, wide and narrow: accessible, and nothing beside the edge."""
    page = watcher.page
    for scheme in ["light", "dark"]:
        for kind, width, height in [("wide", 1280, 1000), ("phone", 390, 844)]:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            # Functions, since playwright would evaluate an expression with eval, and the page's policy forbids that.
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


def check_redis_outage(watcher: Watcher) -> None:
    """The verdict tells of the outage, and a page that is opened during it has the last known figure of the stream."""
    published = watcher.figure("Published").inner_text()
    assert published not in ("", "0", "–"), published
    say("now: kill Redis")
    watcher.wait_for("#processes li[data-state=down]:has-text('Redis')")
    outages = watcher.page.locator("#outages")
    expect(outages).to_have_text("Redis does not answer: consumers read from Postgres.", timeout=PATIENCE_MS)
    watcher.opened_again()
    expect(outages).to_contain_text("Redis does not answer")
    assert watcher.figure("Published").inner_text() == published
    expect(watcher.page.locator("#figures [data-old] small")).to_have_text(re.compile(r"^\d.* ago$"))
    # A single sample without an answer is no event: the outage lasts until it is one.
    watcher.wait_for_event("Redis stopped answering")
    say("now: start Redis")
    watcher.wait_for("#processes li[data-state=up]:has-text('Redis')")
    watcher.wait_for_event("Redis answer(s|ed) again")
    expect(watcher.page.locator("#figures [data-old]")).to_have_count(0)
    expect(outages).to_have_text("", timeout=PATIENCE_MS)


def check_postgres_outage(watcher: Watcher) -> None:
    """A page that is opened during the outage has the last known figures, and tells how old they are."""
    page = watcher.page
    figures = ["Distance, by SQL", "Rides, by SQL", "Head of the log", "Duplicates skipped", "Crashes survived"]
    before = [watcher.figure(name).inner_text() for name in figures]
    cells = page.locator("#consumer-rows td[data-column]")
    cells_before = cells.all_inner_texts()
    assert len(cells_before) == 30, cells_before
    assert page.locator("#age").is_hidden()
    say("now: kill Postgres")
    watcher.wait_for("body[data-verdict=unknown]")
    for _ in range(2):
        assert page.locator("#verdict-text").inner_text() == "Postgres does not answer"
        expect(page.locator("#age")).to_contain_text(re.compile(r"last known figures of Postgres, from [0-9:]{8} \(.+ ago\)"))
        assert [watcher.figure(name).inner_text() for name in figures] == before
        assert cells.all_inner_texts() == cells_before, "the consumers' figures stay"
        watcher.opened_again()
        watcher.wait_for("body[data-verdict=unknown] #consumer-rows tr")
    watcher.wait_for_event("Postgres stopped answering")
    say("now: start Postgres")
    watcher.wait_for("body[data-verdict=converged]")
    expect(page.locator("#age")).to_be_hidden()
    watcher.wait_for_event("Postgres answer(s|ed) again")


def watch(watcher: Watcher, pictures: str) -> None:
    page = watcher.page
    page.goto(watcher.url)
    watcher.wait_for("body[data-link=live]")
    say("live")
    watcher.wait_until_more("Rides, by SQL", 0)
    page.wait_for_function("() => document.querySelectorAll('#consumer-rows tr').length === 3", timeout=PATIENCE_MS)
    check_faults(watcher)
    check_events(watcher)
    check_pids(watcher)
    check_wide_figures(page, watcher.url)
    check_restart(watcher)

    say("now: no more traffic")
    # It may converge for a moment before the traffic has ended.
    page.wait_for_function("""() => document.body.dataset.verdict === 'converged' && [...document.querySelectorAll('#figures div')]
        .some((box) => box.firstChild.textContent === 'Rides per second' && box.querySelector('span').textContent === '0.0')""",
                           timeout=PATIENCE_MS)
    assert page.locator("#verdict-text").inner_text() == "Converged"
    assert page.locator("#consumer-rows [data-agrees=yes]").count() == 3, "each total is marked as SQL's"
    say(f"converged: {watcher.figure('Rides, by SQL').inner_text()} rides, {watcher.figure('Distance, by SQL').inner_text()}")
    check_plots(page)
    check_keyboard(page)
    check_looks(watcher, pictures)

    check_redis_outage(watcher)
    check_postgres_outage(watcher)

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


def run(url: str, watch_page: Callable[[Watcher], None]) -> None:
    """Opens a browser and watches. The page must ask no other server, and have nothing to say in the console."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_program(), args=FLAGS)
        watcher = Watcher(browser.new_page(), url)
        watch_page(watcher)
        browser.close()
    assert not watcher.foreign, f"asked elsewhere: {watcher.foreign}"
    assert not watcher.complaints, f"in the console: {watcher.complaints}"
    say("seen everything")


def main() -> None:
    url, pictures = sys.argv[1:]
    run(url, lambda watcher: watch(watcher, pictures))


if __name__ == "__main__":
    main()
