"""The picture of the report that the README shows.

usage: python tests/browser/picture.py RUN_DIR OUT.png

Three cuts of the page, one below the other: the head with the evaluation table, the plots of the evaluation, and the
card of the dpo stage.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, GAP, MARGIN = 1100, 28, 20
COLOURS = 128


def cuts(page_file: Path) -> list[Image.Image]:
    chromium = os.environ.get("PREFOPT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        context = browser.new_context(viewport={"width": WIDTH, "height": 900}, color_scheme="light", offline=True)
        page = context.new_page()
        page.goto(page_file.absolute().as_uri())
        page.wait_for_load_state("networkidle")
        evidence = page.locator("#evidence").bounding_box()
        curves = page.locator("#evidence figure").filter(has_text="Best of n").locator("xpath=..").bounding_box()
        card = page.locator("#stages figure").filter(has_text="Reward margin").locator("xpath=ancestor::article")
        box = card.bounding_box()
        assert evidence is not None, "the page has no evidence"
        assert curves is not None and box is not None, "the page has no curves, or no stage of kind dpo"
        clips = [{"x": 0, "y": 0, "width": WIDTH, "height": evidence["y"] - MARGIN}]
        for part in (curves, box):
            clips.append({"x": 0, "y": part["y"] - MARGIN / 2, "width": WIDTH, "height": part["height"] + MARGIN})
        shots = [page.screenshot(clip=clip, full_page=True) for clip in clips]
        browser.close()
    return [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]


def main() -> int:
    run, target = Path(sys.argv[1]), Path(sys.argv[2])
    parts = cuts(run / "report" / "index.html")
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    picture = Image.new("RGB", (WIDTH, height), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height + GAP
    picture.quantize(COLOURS).save(target, optimize=True)
    print(f"{target}: {picture.width} × {picture.height}, {target.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
