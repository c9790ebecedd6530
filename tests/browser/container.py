"""Watches the container's panel of the live page in a real browser.

    container.py URL

As in watch.py, each "now: …" asks the test to do something, and the program goes on when the page shows it.
"""

import re
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from watch import PATIENCE_MS, Watcher, run, say


class Panel:
    """The panel of a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problem = page.locator("#container-problem")
        self.destinations = page.locator("#destinations li")

    def tile(self, name: str):
        return self.page.locator("#container-figures div", has_text=name).locator("dd")

    def destination(self, name: str):
        return self.page.locator(f"#destinations li[data-name={name}]")

    def shows(self, locator, text) -> None:
        expect(locator).to_contain_text(text, timeout=PATIENCE_MS)


def check_traffic(panel: Panel) -> None:
    """Units show as they are accepted and committed."""
    panel.shows(panel.tile("Units waiting"), "0")
    expect(panel.problem).to_be_hidden()
    expect(panel.destinations).to_have_count(3)
    panel.shows(panel.destination("board"), "✓ breaker closed")
    say("now: post manifests")
    panel.shows(panel.tile("Committed per second"), re.compile(r"^(0\.[1-9]|[1-9])"))
    panel.shows(panel.destination("board"), re.compile(r"(0\.[1-9]|[1-9][\d.]*) stored and 0\.0 failed per second"))


def check_outage(watcher: Watcher, panel: Panel) -> None:
    """The button makes a destination fail, its breaker opens, units wait for it, and all of it passes."""
    watcher.press("Make notices fail", "notices will be away for ten seconds, from the next unit on")
    notices = panel.destination("notices")
    panel.shows(notices, "✗ breaker open")
    expect(notices).to_have_attribute("data-state", "open")
    panel.shows(notices, re.compile(r"[1-9]\d* units? waits?"))
    panel.shows(panel.tile("Units waiting"), re.compile(r"^[1-9]\d*the oldest for "))
    expect(panel.destination("board")).to_have_attribute("data-state", "closed")
    panel.shows(notices, "✓ breaker closed")
    say("now: no more manifests")
    panel.shows(notices, "0 units wait;")
    panel.shows(panel.tile("Units waiting"), re.compile("^0$"))


def check_keyboard(panel: Panel) -> None:
    """Each button can be reached without a mouse, and the focus can be seen."""
    panel.page.locator("#wallet-id").focus()
    reached = []
    for _ in range(6):
        panel.page.keyboard.press("Tab")
        reached.append(panel.page.evaluate("document.activeElement.ariaLabel"))
        if reached[-1]:
            assert panel.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert [name for name in reached if name] == ["Make board fail", "Make notices fail", "Make photos fail"], reached


def check_looks(panel: Panel) -> None:
    """Light and dark, wide and narrow: accessible, nothing beside the edge, and each button inside of its card."""
    page = panel.page
    for scheme in ["light", "dark"]:
        for width, height in [(1280, 1000), (390, 844), (320, 700)]:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_function("() => document.documentElement.scrollWidth <= window.innerWidth", timeout=PATIENCE_MS)
            for card in panel.destinations.all():
                outer, inner = card.bounding_box(), card.get_by_role("button").bounding_box()
                assert outer["x"] + outer["width"] >= inner["x"] + inner["width"], f"{width}: {outer} {inner}"
            found = Axe().run(page)
            assert found.violations_count == 0, f"{scheme}, {width}: {found.generate_report()}"
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 1000})


def check_away(panel: Panel) -> None:
    """The last known figures stay, with their time, while the container is away."""
    say("now: kill the container")
    panel.shows(panel.problem, re.compile(r"The container does not answer\. .* These figures are from \d\d:\d\d:\d\d\."))
    expect(panel.destinations).to_have_count(3)
    check_looks(panel)


def watch(watcher: Watcher) -> None:
    panel = Panel(watcher.page)
    watcher.page.goto(watcher.url)
    watcher.wait_for("body[data-link=live]")
    check_traffic(panel)
    check_outage(watcher, panel)
    check_keyboard(panel)
    check_looks(panel)
    check_away(panel)


def main() -> None:
    (url,) = sys.argv[1:]
    run(url, watch)


if __name__ == "__main__":
    main()
