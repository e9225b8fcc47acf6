"""Makes the pictures of the README from a real run: make_images.py RUN, in an environment with playwright and Chromium.

It starts the server on the run, fills a hole in the playground as a user would, and opens the run's report.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent
CODE = """def read_lines(path):
    with open(path) as file:
        return [line.strip() for line in file]


def mean(values):
    return  / len(values)
"""


def main(run: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    server = subprocess.Popen(
        [sys.executable, "-m", "codekiln", "serve", str(run), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" on ")[1].split()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 900, "height": 660}, device_scale_factor=1.25, bypass_csp=True)
            take_playground(page, url)
            page = browser.new_page(viewport={"width": 1100, "height": 760}, device_scale_factor=1)
            page.goto((run / "report.html").absolute().as_uri())
            page.wait_for_timeout(3000)  # the charts draw themselves
            page.screenshot(path=FOLDER / "report.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def take_playground(page: Page, url: str) -> None:
    """The page after a hole was filled at the cursor; the answer is selected."""
    page.goto(url)
    page.fill("#code", CODE)
    at = CODE.index(" / len")
    page.evaluate(f"document.getElementById('code').setSelectionRange({at}, {at})")
    page.fill("#temperature", "0")
    page.click("#fill")
    page.wait_for_function("document.getElementById('state').value.includes('ms')")
    page.focus("#code")
    page.screenshot(path=FOLDER / "playground.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
