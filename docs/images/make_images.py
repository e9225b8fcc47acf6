"""Makes the README's picture of a report: make_images.py RUN, in an environment with playwright and Chromium.

The pictures of the playground come from its test: CODEKILN_README_RUN=RUN pytest tests/test_playground.py -k pictures.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent


def main(run: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 760}, device_scale_factor=1)
        page.goto((run / "report.html").absolute().as_uri())
        page.wait_for_timeout(3000)  # the charts draw themselves
        page.screenshot(path=FOLDER / "report.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
