"""The report in a real browser: nothing is fetched, nothing runs, and it is readable on every screen.

Set PREFOPT_SCREENSHOTS to a folder to keep the pictures.
"""

import os
import shutil
from pathlib import Path

import pytest

from prefopt.report import render
from tests.run_folder import FULL, HOSTILE, WITH_PPO, RunFolder, close_up

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("PREFOPT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAPER = {"width": 718, "height": 1047}  # A4 within its margins, at 96 pixels an inch

# WCAG contrast of every piece of visible text against the nearest opaque ground behind it.
CONTRASTS = """
() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || element.tagName === "TITLE" || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = rgb(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.data.trim().slice(0, 40)]);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    good = render(RunFolder(folder / "good").everything())
    full = render(RunFolder(folder / "full", recipe=FULL).full())
    hostile = render(RunFolder(folder / "hostile", recipe=FULL, hostile=True).full(prompts=len(HOSTILE)))
    return {"good": good, "full": full, "hostile": hostile}


@pytest.fixture(scope="module")
def close_ups(tmp_path_factory):
    rows = [
        close_up(["Glad", "ly", ",", " \n", " ", "you", " can", "\ufffd", "."] * 6, seed=0),
        close_up([*HOSTILE, "\u202e"], seed=1),
        close_up(["x", " y"] * 1000, seed=2),
    ]
    folder = RunFolder(tmp_path_factory.mktemp("close") / "ups", recipe=WITH_PPO)
    folder.ppo(rows, rollouts=1)
    return render(folder.run.root)


@pytest.fixture
def show(browser):
    """Opens a file; answers the page, the addresses it asked for, and what it did that it must not."""
    contexts = []

    def open_page(path, viewport=DESKTOP, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        requests, alarms = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: alarms.append(str(error)))
        page.on("console", lambda message: alarms.append(message.text))
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        return page, requests, alarms

    yield open_page
    for context in contexts:
        context.close()


def keep(page, name):
    folder = os.environ.get("PREFOPT_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_nothing_is_fetched_and_the_table_is_seen(reports, show):
    page, requests, alarms = show(reports["good"])
    assert [url for url in requests if not url.startswith("data:")] == [reports["good"].as_uri()]
    assert alarms == []
    assert page.locator("table.evaluation").is_visible()
    assert page.locator("#verdict").inner_text() == "dpo beats sft: win rate 0.70 [0.65, 0.75]"
    assert page.locator("figure svg").count() == 7
    assert all(box["height"] > 150 for box in (svg.bounding_box() for svg in page.locator("figure svg").all()))
    keep(page, "light")


def test_every_link_of_the_page_leads_somewhere(reports, show):
    page, _, _ = show(reports["full"])
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_hostile_samples_do_nothing(reports, show):
    page, requests, alarms = show(reports["hostile"])
    page.wait_for_timeout(200)
    assert alarms == []
    assert page.evaluate("window.PWNED") is None
    assert [url for url in requests if not url.startswith("data:")] == [reports["hostile"].as_uri()]
    shown = page.locator("#samples").evaluate("element => element.textContent")
    assert all(text in shown for text in HOSTILE[:-1])
    found = page.locator("#evidence").evaluate("element => element.textContent")
    assert all(text in found for text in HOSTILE[:4])
    keep(page, "hostile")


def test_an_override_turns_nothing_around(reports, show):
    page, _, _ = show(reports["hostile"])
    # The letters after the override still run from left to right.
    places = page.evaluate("""
        () => {
          const badge = [...document.querySelectorAll("#samples bdi.control")].find((b) => b.dataset.code === "U+202E");
          const text = badge.nextSibling, range = document.createRange();
          return [...text.data].slice(0, 7).map((_, i) => {
            range.setStart(text, i); range.setEnd(text, i + 1);
            return range.getBoundingClientRect().left;
          });
        }
    """)
    assert len(places) == 7 and places == sorted(places)


@pytest.mark.parametrize("run", ["good", "full", "hostile"])
def test_a_phone_scrolls_down_only(reports, show, run):
    page, _, _ = show(reports[run], viewport=PHONE)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = page.locator("#evaluation .scroll").first
    assert box.evaluate("element => element.scrollWidth > element.clientWidth")
    keep(page, f"phone-{run}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(reports, show, scheme):
    page, _, _ = show(reports["hostile"], scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 300
    assert [item for item in contrasts if item[0] < 4.5] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(247, 247, 245)", "dark": "rgb(20, 23, 28)"}[scheme]
    keep(page, scheme + "-hostile")


def test_paper_gets_the_folded_numbers_too(reports, show):
    page, _, _ = show(reports["good"])
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("table.metrics").first.bounding_box()["height"] > 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_new_section_is_seen(reports, show, tmp_path, scheme, viewport):
    page, requests, alarms = show(reports["full"], viewport=viewport, scheme=scheme)
    assert [url for url in requests if not url.startswith("data:")] == [reports["full"].as_uri()] and alarms == []
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert page.locator("#verdict").inner_text().startswith("Gate of eval says no: dpo:win_rate is 0.7")
    for part in ("seeds", "evaluation", "evidence", "stage-eval", "cost"):
        picture = tmp_path / f"{part}.png"
        page.locator(f"#{part}").screenshot(path=picture)
        assert picture.stat().st_size > 5000, part
    assert page.locator("#evidence figure svg").count() == 4
    assert page.locator("#stage-eval .gates li").count() == 3 and page.locator("#stage-eval .gates .bad").count() == 1
    keep(page, f"full-{scheme}-{viewport['width']}")


def test_numbers_of_findings_are_on_the_right_and_scroll_alone(reports, show):
    page, _, _ = show(reports["full"], viewport=PHONE)
    assert page.locator("table.found tbody tr:first-child td").evaluate_all(
        "cells => cells.map((cell) => getComputedStyle(cell).textAlign)"
    ) == ["left", "right", "right"]
    box = page.locator(".scroll", has=page.locator("table.found"))
    assert box.evaluate("element => getComputedStyle(element).overflowX") == "auto"
    table, note = box.bounding_box(), page.locator(".finding > .note").bounding_box()
    assert note["y"] >= table["y"] + table["height"]


def test_a_wide_screen_shows_the_evaluation_without_scrolling(reports, show):
    page, _, _ = show(reports["full"])
    for box in page.locator("#evaluation .scroll, #seeds .scroll, #cost .scroll").all():
        assert box.evaluate("element => element.scrollWidth <= element.clientWidth")


def test_paper_gets_the_new_sections(reports, show, tmp_path):
    page, _, _ = show(reports["full"], viewport=PAPER)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == PAPER["width"]
    for part in ("seeds", "evidence", "cost"):
        assert page.locator(f"#{part}").is_visible()
    assert page.locator(".gates").first.is_visible()
    paper = tmp_path / "report.pdf"
    page.pdf(path=paper)
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 50_000


GROUNDS = "labels => labels.map((label) => getComputedStyle(label).backgroundColor)"
READOUT = "label => getComputedStyle(label, '::after').content"


def test_the_microscope_switches_its_colours_and_says_the_numbers_of_a_token(close_ups, show):
    page, requests, alarms = show(close_ups)
    tokens = page.locator("#microscope article:first-of-type .token")
    seen = {}
    for name in ("KL", "advantage", "value", "entropy"):
        page.locator("#microscope .switch").get_by_text(name, exact=True).click()
        seen[name] = tokens.evaluate_all(GROUNDS)
        assert page.locator("#microscope .legend:visible .swatches i").count() == (5 if name == "entropy" else 9)
        swatches = page.locator("#microscope .legend:visible .swatches i").evaluate_all(GROUNDS)
        assert len(set(swatches)) == len(swatches) and set(seen[name]) <= set(swatches)
    assert len({tuple(grounds) for grounds in seen.values()}) == 4
    # From the switch the tab key leads to the tokens, and there the arrow keys from one to the next.
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    focused = page.locator("#microscope .token:focus-within")
    assert focused.inner_text() == "ly"
    title = focused.get_attribute("title")
    assert title.startswith("KL ") and title.count(" · ") == 4 and "log-probability" in title
    assert focused.evaluate(READOUT) == f'"{title}"'
    assert tokens.first.evaluate(READOUT) == "none"
    assert [url for url in requests if not url.startswith("data:")] == [close_ups.as_uri()] and alarms == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_shade_of_the_microscope_is_readable(close_ups, show, scheme, viewport):
    page, _, alarms = show(close_ups, viewport=viewport, scheme=scheme)
    for name in ("KL", "advantage", "value", "entropy"):
        page.locator("#microscope .switch").get_by_text(name, exact=True).click()
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 2000 and [item for item in contrasts if item[0] < 4.5] == []
        # A readout at the end of a line must not make the page wider.
        page.locator("#microscope article:first-of-type .token input").last.focus()
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        keep(page, f"microscope-{name}-{scheme}-{viewport['width']}")
    assert alarms == [] and page.evaluate("window.PWNED") is None


def test_paper_keeps_the_shades(close_ups, show, tmp_path):
    page, _, _ = show(close_ups, viewport=PAPER)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == PAPER["width"]
    token = page.locator("#microscope .token").first
    assert token.evaluate("label => getComputedStyle(label).printColorAdjust") == "exact"
