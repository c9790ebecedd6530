"""Watches the panel of partitions of the live page in a real browser, on a phone and on a wide screen.

    partitions.py URL

As in watch.py, each "now: …" asks the test to do something, and the program goes on when the page shows it.
"""

import re
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from watch import PATIENCE_MS, Watcher, run, say

PHONE = {"width": 390, "height": 844}

# The cards that are beside the screen or break out of the list, and those that another card covers.
LAYOUT = """() => {
    const boxes = [...document.querySelectorAll('#partitions li')].map((item) => item.getBoundingClientRect());
    const list = document.querySelector('#partitions').getBoundingClientRect();
    const away = boxes.filter((box) => box.left < list.left - 1 || box.right > Math.min(list.right, window.innerWidth) + 1);
    const covered = boxes.filter((box, index) => boxes.some((other, place) => place > index
        && box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom));
    const cut = [...document.querySelectorAll('#partitions li *')].filter((part) => part.scrollWidth - part.clientWidth > 1
        && getComputedStyle(part).display !== 'inline');
    return { columns: new Set(boxes.map((box) => Math.round(box.left))).size, away: away.length, covered: covered.length,
             cut: cut.map((part) => part.textContent) };
}"""


def check_layout(page: Page) -> None:
    """Each card is inside of the screen, also with seven digits; two stand beside each other on a phone."""
    page.evaluate("""() => { for (const note of document.querySelectorAll('#partitions li small:nth-of-type(1)'))
        note.textContent = 'head 9,999,999, published 9,999,999'; }""")
    for width, columns in [(390, 2), (320, 1), (1280, 4)]:
        page.set_viewport_size({"width": width, "height": 844})
        layout = page.evaluate(LAYOUT)
        assert layout["columns"] >= columns, f"{width}: {layout}"
        assert layout["away"] == layout["covered"] == 0 and not layout["cut"], f"{width}: {layout}"
    page.set_viewport_size(PHONE)
    page.wait_for_function("() => document.documentElement.scrollWidth <= window.innerWidth", timeout=PATIENCE_MS)


def watch(watcher: Watcher) -> None:
    page = watcher.page
    page.set_viewport_size(PHONE)
    page.goto(watcher.url)
    watcher.wait_for("body[data-link=live][data-verdict=converged]")
    cards = page.locator("#partitions li")
    expect(cards).to_have_count(8, timeout=PATIENCE_MS)
    for number in range(8):
        expect(cards.nth(number)).to_contain_text(re.compile(rf"^{number} ✓ lag 0"), timeout=PATIENCE_MS)
        expect(cards.nth(number)).to_contain_text("led by streamer", timeout=PATIENCE_MS)
        expect(cards.nth(number)).to_contain_text(re.compile(r"head ([1-9]\d*), published \1"), timeout=PATIENCE_MS)
    expect(watcher.process("streamer")).to_contain_text("leads 8 of 8")
    expect(watcher.figure("Head of the log")).to_have_text("400")
    expect(page.locator("#consumer-rows [data-agrees=yes]")).to_have_count(2)
    check_layout(page)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()

    watcher.press("Wipe the stream of partition 3", "the stream of partition 3 is wiped")
    watcher.wait_for_event("the stream of partition 3 was wiped")
    # A streamer sends only what a consumer still needs.
    say("now: write rides")
    watcher.wait_for_event("the stream of partition 3 was rebuilt")
    watcher.press("Wipe all streams", "8 streams are wiped")
    say("now: write more rides")
    watcher.wait_for_event("the stream of partition 7 was rebuilt")
    say("now: stop the streamer")
    for number in range(8):
        expect(cards.nth(number)).to_contain_text("✗ no leader", timeout=PATIENCE_MS)
    expect(page.locator("#outages")).to_contain_text("No streamer leads partitions 0, 1, 2 and 5 more: new records get no offset")
    say("now: start the streamer")
    for number in range(8):
        expect(cards.nth(number)).to_contain_text(re.compile(rf"^{number} ✓ lag 0.*led by streamer"), timeout=PATIENCE_MS)
    expect(page.locator("#outages")).to_have_text("", timeout=PATIENCE_MS)


if __name__ == "__main__":
    run(sys.argv[1], watch)
