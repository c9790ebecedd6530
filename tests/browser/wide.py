"""Checks the page's layout with figures of seven digits everywhere, on a wide screen and on a phone."""

import json

from playwright.sync_api import Page, TimeoutError

SEVEN_DIGITS = 9_999_999
DISTANCE_MM = str(10**15 - 1)

# Rectangles of everything that must fit, as the browser has laid it out.
LAYOUT = """() => {
    const all = (selector) => [...document.querySelectorAll(selector)];
    const box = (measured) => {
        const { left, right, top, bottom } = measured.getBoundingClientRect();
        return { left, right, top, bottom };
    };
    const tileOf = (tile) => {
        const figure = tile.querySelector('dd span');
        const range = document.createRange();
        range.selectNodeContents(figure);
        return { ...box(tile), text: figure.textContent, lineCount: range.getClientRects().length, textRight: box(range).right };
    };
    const table = document.querySelector('#consumers');
    return {
        pageOverflow: document.documentElement.scrollWidth - window.innerWidth,
        tableOverflow: table.scrollWidth - table.clientWidth,
        grid: box(document.querySelector('#figures')),
        tiles: all('#figures > div').map(tileOf),
        buttons: all('button').filter((button) => button.offsetParent)
            .map((button) => ({ ...box(button), text: button.ariaLabel ?? button.textContent })),
        rows: all('#consumer-rows tr').map((row) => ({ ...box(row), display: getComputedStyle(row).display })),
        cells: all('#consumer-rows td').map((cell) => ({ text: cell.textContent, overflow: cell.scrollWidth - cell.clientWidth })),
    };
}"""


def with_wide_figures(state: dict) -> dict:
    """A sample of the server with seven digits in each figure."""
    for consumer in state["log"]["consumers"]:
        wide = {name: SEVEN_DIGITS for name, figure in consumer.items() if isinstance(figure, (int, float))}
        consumer.update(wide, total={"ride_count": SEVEN_DIGITS, "distance_mm": DISTANCE_MM, "digest": "0" * 16})
    state["log"]["head"] = SEVEN_DIGITS
    state["stream"].update(last_offset=SEVEN_DIGITS, entry_count=SEVEN_DIGITS)
    state["recount"].update(head=SEVEN_DIGITS, is_complete=True, ride_count=SEVEN_DIGITS, distance_mm=DISTANCE_MM)
    for process in state["processes"]:
        process.update(pid=4_194_304, refused_count=None if process["refused_count"] is None else SEVEN_DIGITS)
    return state | {"rides_per_s": SEVEN_DIGITS}


def check_wide_figures(page: Page, url: str) -> None:
    """Opens a second page, whose samples have wide figures, and measures it."""
    sample = json.dumps(with_wide_figures(page.request.get(f"{url}/state").json()))
    wide = page.context.browser.new_page()
    # The browser takes the end of this response for a lost connection, and tries again. The figures stay meanwhile.
    wide.route("**/events", lambda route: route.fulfill(
        body=f"event: history\ndata: []\n\nevent: sample\ndata: {sample}\n\n", content_type="text/event-stream"))
    wide.goto(url)
    wide.wait_for_selector("#faults:not([hidden])")
    wide.wait_for_selector("#consumer-rows td.fault:not([hidden]) button")
    for width, height, display in [(1280, 1000, "table-row"), (390, 844, "grid")]:
        wide.set_viewport_size({"width": width, "height": height})
        # The plots follow a new width one after another, each in a callback of the browser.
        try:
            wide.wait_for_function("() => document.documentElement.scrollWidth <= window.innerWidth", timeout=10_000)
        except TimeoutError:
            pass  # check_layout says how much is beside the page.
        check_layout(wide.evaluate(LAYOUT), width, display)
    wide.close()


def check_layout(layout: dict, width: int, display: str) -> None:
    """Nothing overflows, no figure breaks, each row of tiles is full, and each button is inside of the screen."""
    tiles, rows, buttons = layout["tiles"], layout["rows"], layout["buttons"]
    assert layout["pageOverflow"] <= 0, f"{width}: {layout['pageOverflow']} pixels are beside the page"
    assert layout["tableOverflow"] <= 0, f"{width}: {layout['tableOverflow']} pixels of the table are beside it"
    assert len(rows) == 3 and all(row["display"] == display for row in rows), f"{width}: {rows}"
    broken = [tile for tile in tiles if tile["lineCount"] != 1 or tile["textRight"] > tile["right"]]
    assert not broken, f"{width}: figures break or leave their tiles: {broken}"
    assert sum("9,999,999" in tile["text"] for tile in tiles) >= 4, f"{width}: the figures are wide: {tiles}"
    for top in {tile["top"] for tile in tiles}:
        right = max(tile["right"] for tile in tiles if tile["top"] == top)
        assert abs(right - layout["grid"]["right"]) < 2, f"{width}: a row of tiles is not full: {tiles}"
    cut = [cell for cell in layout["cells"] if cell["overflow"] > 1]
    assert not cut, f"{width}: figures are wider than their cells: {cut}"
    away = [button for button in buttons if button["left"] < 0 or button["right"] > width]
    assert not away, f"{width}: buttons are out of reach: {away}"
    crash = [button for button in buttons if button["text"].startswith("Crash ")]
    assert len(crash) == 3, f"{width}: each consumer has its button: {buttons}"
    for button, row in zip(crash, rows):
        is_inside = row["left"] <= button["left"] and button["right"] <= row["right"] and button["bottom"] <= row["bottom"]
        assert is_inside, f"{width}: a button is outside of its consumer: {button} {row}"
