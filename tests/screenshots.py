"""Takes pictures of pages for a person to look at: at four widths, light and dark, and printed to PDF.

In: pages (HTML files, or addresses), by the name that their pictures get. Out: in the folder NAME_WIDTH_light.png and
_dark.png, NAME.pdf, and on the screen what does not fit, by the same measure as the tests of pages. make screenshots
calls it for the pages of the demos' runs.

Example: ``python tests/screenshots.py --out runs/screenshots board=runs/compare/report.html``
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from browser_lab import CHROMIUM, DRIVER, WIDTHS, Sight, chromium


def photograph(sight, name, out):
    """Save all pictures of the open page, and say what does not fit."""
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            sight.at(width, dark=scheme == "dark")
            sight.picture(out / f"{name}_{width}_{scheme}.png")
    (out / f"{name}.pdf").write_bytes(sight.pdf())
    # Pages of the documentation site have their drawers beside the window; tests/cli/test_site_in_browser.py is theirs.
    if not sight.driver.execute_script("return document.querySelector('.md-header')"):
        for where, faults in sight.all_faults().items():  # last, since it unfolds what is folded
            print(f"{name} at {where}: {'; '.join(faults)}")


def main():
    """Take pictures of the pages that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", metavar="NAME=PAGE", help="a file, or an address that begins with http")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wait", type=float, default=0, help="seconds, for pages that load more, such as view's")
    chosen = parser.parse_args()
    if not (CHROMIUM and DRIVER):
        sys.exit("Pictures need chromium and chromedriver (on Debian: apt-get install chromium chromium-driver).")
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        driver = chromium(profile)
        try:
            sight = Sight(driver)
            for page in chosen.pages:
                name, _, place = page.partition("=")
                if not place.startswith("http") and not Path(place).is_file():
                    print(f"{name}: there is no {place}")
                    continue
                sight.open(place if place.startswith("http") else Path(place).resolve())
                time.sleep(chosen.wait)
                photograph(sight, name, chosen.out)
                print(f"{name}: {2 * len(WIDTHS)} pictures and a PDF")
        finally:
            driver.quit()
    print(chosen.out)


if __name__ == "__main__":
    main()
