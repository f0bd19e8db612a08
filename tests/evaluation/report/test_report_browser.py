"""The comparison page in headless Chromium, from file://: it filters, fits a phone, and asks for nothing."""

import json
import re
import shutil
import subprocess

import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.report.report import write_comparison_report

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000"),
]

# Read through a frame of a phone's width: headless Chromium's own window cannot be narrower than 500 pixels.
PROBE = """<!doctype html><iframe id="f" src="{page}" style="width:390px;height:900px;border:0"></iframe>
<script>
window.onload = function () {{
  var view = document.getElementById("f").contentWindow, page = view.document;
  var wide = page.documentElement.scrollWidth;
  var button = page.querySelector("button[data-value=wrong]");
  button.focus();
  var focused = page.activeElement === button;
  button.click();
  var box = page.getElementById("outlines");
  box.click();
  var line = page.querySelector(".radiograph path");
  document.title = JSON.stringify({{
    wide: wide, focused: focused, shown: page.getElementById("shown").textContent,
    visible: page.querySelectorAll(".card:not([hidden])").length, pressed: button.getAttribute("aria-pressed"),
    hidden_lines: view.getComputedStyle(line).display,
    requests: view.performance.getEntriesByType("resource").length
  }});
}};
</script>"""


@pytest.fixture
def page(tmp_path):
    truth = write_truth(tmp_path, n=100)
    board = board_of(truth, submit(tmp_path / "a", truth, "A" * 70, 1), submit(tmp_path / "b", truth, "B", 1, seed=1))
    return write_comparison_report(tmp_path / "report.html", board)


def dom(address, folder, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_filters_open_from_an_address(tmp_path, page):
    html = dom(f"file://{page}#outcome=disagree&size=none", tmp_path)
    shown = [card for card in re.findall(r"<figure class=\"card\"[^>]*>", html) if "hidden" not in card]
    assert shown
    assert all('data-tags="disagree' in card and 'data-size="none"' in card for card in shown)
    assert f"{len(shown)} of " in re.search(r'<output id="shown">([^<]*)', html).group(1)
    assert len(shown) < html.count('class="card"')


def test_on_a_phone_with_clicks(tmp_path, page):
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=page.as_uri()))
    html = dom(f"file://{probe}", tmp_path, "--allow-file-access-from-files")
    seen = json.loads(re.search(r"<title>(.*?)</title>", html).group(1))
    assert seen["wide"] <= 390  # tables slide inside their frames; the page itself never does
    assert seen["focused"]
    assert seen["pressed"] == "true"
    assert seen["shown"].startswith(f"{seen['visible']} of ")
    assert seen["hidden_lines"] == "none"
    assert seen["requests"] == 0


def test_prints(tmp_path, page):
    paper = tmp_path / "page.pdf"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={paper}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert paper.read_bytes().startswith(b"%PDF")
