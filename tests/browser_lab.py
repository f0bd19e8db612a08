"""Looks at pages in headless Chromium: at any width, dark, or as on paper, and says what does not fit."""

import base64
import shutil
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with its chromedriver here")

WIDTHS = (390, 768, 1280, 1920)
PAPER = 703
"""A4 less margins of 12 mm, in CSS pixels."""

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

PROBE = r"""
const wide = window.innerWidth, faults = [];
const kind = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") || ""}`;
const name = (e) => `${kind(e)} "${e.textContent.trim().slice(0, 50)}"`;
const say = (what, e) => { if (faults.length < 12) faults.push(`${what}: ${name(e)}`); };
document.querySelectorAll("details").forEach((e) => { e.open = true; });
const whole = document.documentElement.scrollWidth;
if (whole > wide) faults.push(`the page is ${whole} wide`);
const folded = (e) => e.closest("thead") && getComputedStyle(e.closest("thead")).position === "absolute";
const words = /[^\s_\-./\\,;:()]+[_\-./\\,;:()]*/g;
for (const e of document.body.querySelectorAll("*")) {
  const box = e.getBoundingClientRect();
  if (!box.width || !box.height || folded(e)) continue;
  if (box.right > wide + 1 || box.left < -1) say("out of the window", e);
  const style = getComputedStyle(e);
  if (/auto|scroll/.test(style.overflowX) && e.scrollWidth > e.clientWidth) say("slides", e);
  const svg = e.ownerSVGElement;
  if (e.tagName === "text") {
    const frame = svg.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1) say("out of its chart", e);
    if (box.top < frame.top - 1 || box.bottom > frame.bottom + 1) say("out of its chart", e);
  } else if (!svg && e.tagName !== "svg" && e.clientWidth) {
    if (e.scrollWidth > e.clientWidth + 1) say("cut or too wide", e);
    if (style.overflowY === "hidden" && e.scrollHeight > e.clientHeight + 1) say("cut below", e);
  }
  if (!e.matches("h1, h2, h3, th, td, caption, a, .card li, .together, .mark, .research, .value, .name")) continue;
  for (const text of e.childNodes) {
    if (text.nodeType !== 3) continue;
    for (const word of text.data.matchAll(words)) {
      if (word[0].length > 20) continue;
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      const tops = new Set([...range.getClientRects()].filter((r) => r.width > 0.5).map((r) => Math.round(r.top)));
      if (tops.size > 1) say(`breaks within "${word[0]}"`, e);
    }
  }
}
for (const svg of document.querySelectorAll("svg.chart")) {
  const boxes = [...svg.querySelectorAll("text")].map((e) => [e, e.getBoundingClientRect()]).filter(([, b]) => b.width);
  boxes.forEach(([e, a], i) => boxes.slice(i + 1).forEach(([, b]) => {
    const beside = a.left > b.right - 1 || b.left > a.right - 1, above = a.top > b.bottom - 4 || b.top > a.bottom - 4;
    if (!beside && !above) say("covers another text", e);
  }));
}
return faults;
"""


def chromium(profile):
    """Starts a headless Chromium whose profile lies in that folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class Sight:
    """What a window of Chromium shows."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)

    def at(self, width, dark=False, paper=False, height=900):
        """Set the window's width in CSS pixels, dark or light, screen or paper."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        media = {"media": "print" if paper else "screen", "features": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        # Until the page has heard of its new size and was drawn with it.
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));"
        )

    def faults(self):
        """What does not fit into the window as it is: out of it, cut, sliding, broken within a word, or covered."""
        return self.driver.execute_script(PROBE)

    def all_faults(self):
        """The faults of the open page at every width, and on paper, by where."""
        found = {}
        for width in WIDTHS:
            self.at(width)
            found[width] = self.faults()
        self.at(PAPER, paper=True)
        found["paper"] = self.faults()
        return {where: faults for where, faults in found.items() if faults}

    def contrast(self, selector="body"):
        """Contrast of an element's text against the page's background, as WCAG defines it: 1 to 21."""
        script = """
        const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = (colour) => {
          const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(Number(v) / 255));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const [a, b] = [light(getComputedStyle(document.querySelector(arguments[0])).color),
          light(getComputedStyle(document.body).backgroundColor)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);"""
        return self.driver.execute_script(script, selector)

    def pdf(self):
        """The open page printed on A4, as PDF."""
        self.at(PAPER, paper=True)  # else what is printed looks as on the screen
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", paper)["data"])

    def picture(self, path):
        """Save the whole page as PNG."""
        size = self.driver.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        Path(path).write_bytes(base64.b64decode(shot["data"]))
