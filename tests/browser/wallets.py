"""Watches the wallets' panel of the live page in a real browser.

    wallets.py URL WALLET OTHER

As in watch.py, each "now: …" asks the test to do something, and the program goes on when the page shows it.
"""

import re
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from watch import PATIENCE_MS, Watcher, run, say

AGREE = "✓ Redis and Postgres agree: both have version {}."


class Panel:
    """The panel of a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.money = page.locator("#money")
        self.newest = page.locator("#newest-wallets li")
        self.events = page.locator("#wallet-events li")
        self.agreement = page.locator("#wallet-agreement")

    def tile(self, name: str):
        return self.page.locator("#wallet-figures div", has_text=name).locator("dd")

    def shows(self, locator, text) -> None:
        expect(locator).to_contain_text(text, timeout=PATIENCE_MS)


def check_money(panel: Panel, wallet: str) -> None:
    """A credit shows as it happens, and so does a rejected debit with its reason."""
    panel.shows(panel.money, "The money adds up")
    expect(panel.page.locator("#no-wallets")).to_be_visible()
    say("now: credit the wallet")
    panel.shows(panel.newest.first, "credit of 1,234,567.50: balance 1,234,567.50, version 1")
    expect(panel.newest.first.get_by_role("button")).to_have_text(wallet)
    panel.shows(panel.tile("Sum of balances"), "1,234,567.50")
    panel.shows(panel.money, "1 wallet has 1,234,567.50 in all, which is accepted credits minus debits")
    expect(panel.money).to_have_attribute("data-state", "good")
    say("now: reject a debit")
    panel.shows(panel.newest.first, "✗ debit of 5 rejected")
    assert panel.page.locator("#newest-wallets img").count() == 0, "the reason is a text"
    expect(panel.newest.first).to_contain_text("<img src=x onerror=alert(1)>")


def check_look(panel: Panel, wallet: str) -> None:
    """A click shows the wallet. It is followed from then on."""
    panel.newest.first.get_by_role("button").click()
    panel.page.mouse.move(2, 2)
    panel.shows(panel.page.locator("#wallet-title"), wallet)
    panel.shows(panel.page.locator("#wallet-balance"), "1,234,567.50")
    panel.shows(panel.agreement, AGREE.format(1))
    expect(panel.events).to_have_count(2)
    expect(panel.events.first).to_have_attribute("data-accepted", "no")
    say("now: debit the wallet")
    panel.shows(panel.page.locator("#wallet-version"), "version 2")
    panel.shows(panel.events.first, "debit of 0.50: balance 1,234,567.00, version 2")
    panel.shows(panel.agreement, "Redis is behind: it has version 1.")
    say("now: write the document")
    panel.shows(panel.agreement, AGREE.format(2))
    expect(panel.agreement).to_have_attribute("data-state", "good")
    say("now: delete the document")
    panel.shows(panel.agreement, "Redis has no document of this wallet")
    say("now: forge the document")
    panel.shows(panel.agreement, "✗ Redis and Postgres differ: Redis has version 2")
    expect(panel.agreement).to_have_attribute("data-state", "bad")


def check_keyboard(panel: Panel, other: str) -> None:
    """A wallet is typed and shown without a mouse. Another text is no id, and is told so."""
    page = panel.page
    page.locator("#newest-wallets button").first.focus()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id === 'wallet-id'"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus cannot be seen"
    page.keyboard.press("Control+A")
    page.keyboard.type("<b>no id</b>")
    page.keyboard.press("Enter")
    message = page.locator("#wallet-message")
    expect(message).to_have_text("This is no wallet’s id: it has 27 characters, each of 0-9, A-Z and a-z.")
    expect(page.locator("#wallet")).to_be_hidden()
    page.keyboard.press("Control+A")
    page.keyboard.type(f" {other} ")
    page.keyboard.press("Enter")
    panel.shows(page.locator("#wallet-title"), other)
    expect(page.locator("#no-events")).to_have_text("It was never used.")
    panel.shows(page.locator("#wallet-version"), "version 0")


def check_list_waits(panel: Panel, other: str) -> None:
    """The list does not change under the pointer of a reader who is about to click."""
    before = panel.newest.all_inner_texts()
    panel.newest.first.hover()
    say("now: credit the other wallet")
    panel.shows(panel.events.first, "credit of 3.00")
    assert panel.newest.all_inner_texts() == before
    panel.page.mouse.move(2, 2)
    expect(panel.newest.first.get_by_role("button")).to_have_text(other, timeout=PATIENCE_MS)


def check_looks(panel: Panel) -> None:
    """Light and dark, wide and narrow: accessible, and nothing beside the edge."""
    page = panel.page
    for scheme in ["light", "dark"]:
        for width, height in [(1280, 1000), (390, 844), (320, 700)]:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_function("() => document.documentElement.scrollWidth <= window.innerWidth", timeout=PATIENCE_MS)
            found = Axe().run(page)
            assert found.violations_count == 0, f"{scheme}, {width}: {found.generate_report()}"
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 1000})


def watch(watcher: Watcher, wallet: str, other: str) -> None:
    panel = Panel(watcher.page)
    watcher.page.goto(watcher.url)
    watcher.wait_for("body[data-link=live]")
    check_money(panel, wallet)
    check_look(panel, wallet)
    check_keyboard(panel, other)
    check_list_waits(panel, other)
    check_looks(panel)
    say("now: forge money")
    panel.shows(panel.money, re.compile("✗ The money does not add up .*1,234,571.00 in all, but .* are 1,234,572.00"))
    expect(panel.money).to_have_attribute("data-state", "bad")
    check_looks(panel)


def main() -> None:
    url, wallet, other = sys.argv[1:]
    run(url, lambda watcher: watch(watcher, wallet, other))


if __name__ == "__main__":
    main()
