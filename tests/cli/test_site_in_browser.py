"""The documentation site as ``make docs`` builds it, in headless Chromium: from the disk, and below a sub-path."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browser_lab import WIDTHS, Sight, chromium, needs_chromium
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

REPOSITORY = Path(__file__).parents[2]
MKDOCS = REPOSITORY / ".venv-docs/bin/mkdocs"
pytestmark = [
    pytest.mark.slow,
    needs_chromium,
    pytest.mark.skipif(not MKDOCS.exists(), reason="there is no .venv-docs: make docs makes it"),
]

STYLED = """
const header = getComputedStyle(document.querySelector(".md-header")).backgroundColor;
return [...document.querySelectorAll("link[rel=stylesheet]")].every((e) => e.sheet) && header !== "rgba(0, 0, 0, 0)";"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "docs"
    for command in (
        [sys.executable, "docs/site/commands.py", "build/commands.md"],
        [MKDOCS, "build", "--strict", "--quiet", "--site-dir", folder],
    ):
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def sight(tmp_path_factory):
    driver = chromium(tmp_path_factory.mktemp("profile"))
    yield Sight(driver)
    driver.quit()


class WithNotFound(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and for an address that does not exist the site's 404.html, as hosts of such sites do."""

    def send_error(self, code, message=None, explain=None):
        page = (Path(self.directory) / "docs/404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    def log_message(self, *_):
        pass


@pytest.fixture
def host(site):
    """The address of a host that has the site below ``/docs/``."""
    handler = functools.partial(WithNotFound, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def found(sight, word):
    """The addresses that a search for the word gives, which is typed as a person does."""
    query = sight.driver.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]")
    query.click()
    query.send_keys(word)
    script = "return [...document.querySelectorAll('a.md-search-result__link')].map((e) => e.href)"
    return WebDriverWait(sight.driver, 20, 0.2).until(lambda driver: driver.execute_script(script))


def test_no_page_is_wider_than_its_window(site, sight):
    wide = []
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for width in WIDTHS:
        sight.at(width)
        for page in pages:
            sight.open(page)
            whole = sight.driver.execute_script("return document.documentElement.scrollWidth")
            wide += [(page.name, width, whole)] if whole > width else []
    assert not wide


def test_the_search_finds_a_word_from_the_disk(site, sight):
    sight.at(1280)
    for page in ("index.html", "404.html"):
        sight.open(site / page)
        addresses = found(sight, "pseudonym")
        assert any(address.startswith((site / "privacy.html").as_uri()) for address in addresses), page


def test_pages_are_dark_where_the_system_is_and_follow_it(site, sight):
    for dark in (False, True, False):
        sight.at(1280, dark=dark)
        sight.open(site / "index.html")
        scheme = sight.driver.execute_script("return document.body.getAttribute('data-md-color-scheme')")
        assert scheme == ("slate" if dark else "default")
        assert sight.contrast(".md-typeset") > 7


@pytest.mark.parametrize("address", ["404.html", "gone.html", "notebooks/gone.html", "a/b/c/gone"])
def test_the_page_for_what_does_not_exist_is_whole_below_a_sub_path(sight, host, address):
    sight.at(1280)
    sight.open(f"{host}/docs/{address}")
    assert sight.driver.execute_script(STYLED)
    links = sight.driver.execute_script("return [...document.querySelectorAll('a.md-nav__link')].map((e) => e.href)")
    assert f"{host}/docs/index.html" in links
    assert any(link.startswith(f"{host}/docs/privacy.html") for link in found(sight, "pseudonym"))


def test_the_page_for_what_does_not_exist_is_styled_from_the_disk(site, sight):
    sight.open(site / "404.html")
    assert sight.driver.execute_script(STYLED)
    links = sight.driver.execute_script("return [...document.querySelectorAll('a.md-nav__link')].map((e) => e.href)")
    assert (site / "index.html").as_uri() in links
