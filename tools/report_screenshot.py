"""`python -m tools.report_screenshot RUN OUT`: a picture of a run's report, at the token that gained most.

Needs Playwright and a Chromium (`TEACHDIAG_CHROMIUM`, or one on the path).
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def main(run: Path, out: Path) -> None:
    """Take the picture."""
    chromium = os.environ.get("TEACHDIAG_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1100, "height": 860})
        page.emulate_media(reduced_motion="reduce")
        page.goto((run / "report.html").resolve().as_uri())
        page.select_option("#column", label="gain")
        page.select_option("#sort", "gain")
        page.select_option("#selector", "learnable")
        page.click("#highest")
        page.evaluate("document.querySelector('#filters').scrollIntoView()")
        page.mouse.move(1, 1)  # off the tokens, so that the focused one keeps its card
        page.locator("#card").wait_for(state="visible")
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
