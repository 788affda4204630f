"""How long a slider's change takes on the page of `w2w explore`; and the page's pictures for README and docs.

python benchmarks/explore.py --out docs/results/explore.json       the median of 50 changes at four pictures
python benchmarks/explore.py --pictures docs/pictures              the page on tiny-faces, at the width of a desk and a phone
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import w2wpp as w2w
from machine import machine
from w2wpp.common.files import write_json
from w2wpp.explore.desk import Desk
from w2wpp.explore.studio import Studio, Words
from w2wpp.explore.visit import Person, Visit

CHANGES = 50
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)


def studio() -> Studio:
    """tiny-faces, as `w2w explore tiny-faces` opens it."""
    base = w2w.BaseModel.load("tiny-faces")
    space = w2w.Space.load("tiny-faces", base.device)
    return Studio(base, space, "tiny-faces", w2w.PhotoEncoder.from_pretrained("tiny-faces"), w2w.WeightDataset.load("tiny-faces"))


def slider_changes(shared: Studio, solver_steps: int = 10) -> dict[str, Any]:
    """Seconds of each change of the first slider: the handler's, from values to the HTML of eight pictures, four of them drawn."""
    known = shared.space.prompting
    words = Words(known.prompt, "", known.guidance, solver_steps, 0)
    desk = Desk(shared)
    visit = desk.current(Visit().keep(Person("sample", shared.space.sample(1, seed=0)[0])), *words)[0]
    rest = [0.0] * (len(shared.directions) + len(shared.axes) - 1)
    seconds = []
    for i in range(CHANGES + 1):
        begun = time.perf_counter()
        desk.edit(visit, [], 1.0, 4 * i / CHANGES - 2, *rest, *words)
        seconds.append(time.perf_counter() - begun)
    kept = sorted(seconds[1:])  # the first one fits the directions
    return {"changes": CHANGES, "solver_steps": solver_steps, "median_s": statistics.median(kept), "slowest_s": kept[-1]}


def page_pictures(shared: Studio, folder: Path) -> None:
    """Take the page as a desk and a phone show it."""
    from playwright.sync_api import sync_playwright

    from w2wpp.explore.page import build, launch

    page = build(shared)
    address = launch(page, "127.0.0.1", None, browser=False, auth=None, share=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        for name, width, height, scheme in (("desk", 1280, 900, "light"), ("phone", 390, 844, "dark")):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            seen = context.new_page()
            seen.set_default_timeout(180_000)
            seen.goto(address)
            seen.wait_for_selector("#sheet img")
            if name == "desk":
                seen.get_by_role("tab", name="Edit", exact=True).click()
                slider = seen.locator(".w2w-tabs input[type=range]:visible").nth(1)
                slider.focus()
                [slider.press("ArrowRight") for _ in range(30)]
                seen.wait_for_function("document.querySelector('#edit-command textarea').value.includes('=3 ')")
            seen.screenshot(path=folder / f"explore-{name}.png")
        browser.close()
    page.close(verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    shared = studio()
    if given.out:
        result = {"machine": machine(), **slider_changes(shared)}
        write_json(given.out, result)
        print(result)
    if given.pictures:
        page_pictures(shared, given.pictures)


if __name__ == "__main__":
    main()
