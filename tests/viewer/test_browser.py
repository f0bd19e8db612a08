"""The page in headless Chromium: a DICOM file is dropped, shown and gets a verdict; a hostile one gets an error."""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from detector_lab import checked_detector, cut_dicom, dice, drawn_hand, expected_mask

pytest.importorskip("uvicorn", reason="the page (extra view) is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from browser_lab import Sight  # noqa: E402
from page_lab import Page  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402 - what is absent is said above
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from keras_pneumo.viewer.decoding import decode_bytes  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[3] / "shared")) / "siim_mini" / "dicom"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with its chromedriver here"),
]
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,900"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Browser:
    """Chromium on a served page."""

    def __init__(self, page, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.page = page
        self.driver.get(f"{page.address}/?token={page.keys.once}")
        self.until("return document.body.dataset.ready === 'yes'")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, script, seconds=60):
        WebDriverWait(self.driver, seconds, 0.1).until(lambda _: self.run(script))

    def text(self, name):
        return self.driver.find_element(By.ID, name).text

    def press(self, *keys):
        self.driver.find_element(By.TAG_NAME, "body").send_keys(*keys)

    def drop(self, *paths, wait=True):
        """Drop files from outside onto the page, as a person does, and ``wait`` for the answer to the first."""
        before = self.run(
            "document.getElementById('busy').hidden = true; return document.getElementById('position').textContent"
        )
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
            event = {"type": kind, "x": 400, "y": 400, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)
            time.sleep(0.3)  # the page must have said that it takes files before they are let go
        self.until(f"return document.getElementById('position').textContent !== {json.dumps(before)}")
        if wait:
            self.until("return document.getElementById('busy').hidden")

    def wait_for(self, position):
        """Until the radiograph at this position, such as ``2 of 3``, is shown."""
        self.until(
            f"return document.getElementById('position').textContent === {json.dumps(position)}"
            " && document.getElementById('busy').hidden"
        )

    def pressed(self, verdict):
        """Whether this verdict's button is."""
        button = f"document.querySelector('[data-verdict={verdict}]')"
        return self.run(f"return {button}.getAttribute('aria-pressed')") == "true"

    def pixels(self):
        """The radiograph as it is drawn, uint8 (side, side)."""
        values = self.run(
            "const c = document.getElementById('grey');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return Array.from({length: c.width * c.height / 16}, (_, i) => d[64 * i]);"
        )
        return np.array(values, np.uint8)  # every 16th pixel

    def inside(self):
        """Whether points of a 64x64 lattice lie inside the outline."""
        values = self.run(
            "const s = document.getElementById('outline'), p = s.querySelector('.line'), inside = [];"
            "for (let y = 8; y < 1024; y += 16) for (let x = 8; x < 1024; x += 16) {"
            "const q = s.createSVGPoint(); q.x = x; q.y = y; inside.push(p.isPointInFill(q)); } return inside;"
        )
        return np.array(values, bool).reshape(64, 64)

    def console_errors(self):
        """Errors in the page's console, without the server's refusals, which are answers."""
        log = self.driver.get_log("browser")
        severe = [entry["message"] for entry in log if entry["level"] == "SEVERE"]
        return [message for message in severe if "Failed to load resource" not in message]


@pytest.fixture
def browser(radiographs, tmp_path):
    with Page(radiographs, tmp_path / "readings.csv") as page:
        chromium = Browser(page, tmp_path / "profile")
        yield chromium
        chromium.driver.quit()


def check_shown(browser, path, tmp_path):
    """What is on the page is that file: its pixels, the outline of its bright parts, one over the other."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    pixels = 255 - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels
    shown = browser.pixels().astype(int)
    decoded = decode_bytes(path.read_bytes(), path.name).pixels
    np.testing.assert_array_equal(shown, decoded.ravel()[::16], "what the detector sees is what is drawn")
    assert np.abs(shown - pixels.ravel()[::16].astype(int)).max() <= 1  # pydicom's JPEG decoder rounds otherwise
    expected = expected_mask(pixels)[8::16, 8::16]
    inside = browser.inside()
    right = dice(inside, expected)
    assert right > 0.95
    for wrong in (inside[:, ::-1], inside[::-1], inside.T):
        assert dice(wrong, expected) < right - 0.02
    boxes = [
        browser.run(f"const b = document.querySelector('{layer}').getBoundingClientRect(); return [b.x, b.y, b.width]")
        for layer in ("#grey", "#heat", "#outline")
    ]
    np.testing.assert_allclose(boxes[1:], [boxes[0]] * 2, atol=0.5)
    over = "document.querySelectorAll('#facts, #state').forEach((e) => { e.style.visibility = arguments[0]; })"
    browser.run(over, "hidden")  # their dark ground covers a corner
    browser.driver.save_screenshot(str(tmp_path / "shot.png"))
    browser.run(over, "")
    picture = cv2.imread(str(tmp_path / "shot.png"))
    x, y, side = (round(value) for value in boxes[0])
    radiograph = picture[max(y, 0) : y + side, x : x + side]
    grey = radiograph.mean(axis=2)
    plain = np.ptp(radiograph, axis=2) < 8  # neither the outline nor its rim's mixture with it
    small = cv2.resize(pixels, (grey.shape[1], grey.shape[0]), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(grey[plain], small[plain])[0, 1] > 0.95, "the screenshot shows that radiograph"
    assert (np.ptp(radiograph, axis=2) > 60).mean() > 0.002, "and an outline in colour"


def test_a_dropped_dicom_is_shown_and_its_verdict_saved(browser, tmp_path):
    browser.until("return document.body.dataset.shown")
    check_shown(browser, browser.page.files[0][0], tmp_path)
    outside = tmp_path / "dropped.dcm"
    outside.write_bytes(browser.page.files[1][0].read_bytes())
    browser.drop(outside)
    assert browser.text("position") == "3 of 3"
    assert browser.text("name") == "dropped.dcm"
    assert "yes" in browser.text("word")
    assert "10 of 40" in browser.text("evidence")
    assert "Probability 0.800, from the classifier; yes from 0.500 on." in browser.text("numbers")
    assert "The probability comes from the classifier." in browser.text("heat-note")
    assert "about 25 would be wrong" in browser.text("hundred")
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "#dots .wrong")) == 25
    check_shown(browser, outside, tmp_path)
    browser.press("d")
    WebDriverWait(browser.driver, 30).until(lambda _: browser.pressed("disagree"))
    browser.press(Keys.ARROW_LEFT)
    browser.until(
        "return document.getElementById('position').textContent === '2 of 3' && document.getElementById('busy').hidden"
    )
    # The same bytes, so the verdict is there already; the other radiograph gets one with a click.
    assert (
        browser.run("return document.querySelector('[data-verdict=disagree]').getAttribute('aria-pressed')") == "true"
    )
    browser.press(Keys.ARROW_LEFT)
    browser.until(
        "return document.getElementById('position').textContent === '1 of 3' && document.getElementById('busy').hidden"
    )
    browser.driver.find_element(By.CSS_SELECTOR, "[data-verdict=agree]").click()
    browser.until("return document.getElementById('agreement').textContent.startsWith('All 3 read')")
    assert "agree on 1 of 2" in browser.text("agreement")
    table = pd.read_csv(tmp_path / "readings.csv")
    assert sorted(table["verdict"]) == ["agree", "disagree"]
    loaded = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(url.startswith((browser.page.address, "data:")) for url in loaded), loaded
    assert browser.console_errors() == []


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def held(monkeypatch, owner, name, when=lambda *_: True):
    """Hold the calls of a method that ``when`` says to, until the event that is returned is set."""
    let_go, real = threading.Event(), getattr(owner, name)

    def wait(*given):
        if when(*given):
            assert let_go.wait(60)
        return real(*given)

    monkeypatch.setattr(owner, name, wait)
    return let_go


def test_a_verdict_waits_for_the_radiograph_that_it_is_on(browser, tmp_path, monkeypatch):
    browser.until("return document.body.dataset.shown")
    let_go = held(monkeypatch, browser.page.page_detector, "answer", lambda _, name: name == "slow.dcm")
    slow = tmp_path / "slow.dcm"
    slow.write_bytes(browser.page.files[1][0].read_bytes() + b"\0\0")  # bytes that nobody has read yet
    browser.drop(slow, wait=False)
    assert browser.text("busy") == "Reading …"
    buttons = browser.driver.find_elements(By.CSS_SELECTOR, "[data-verdict]")
    assert not any(button.is_enabled() for button in buttons), "there is no radiograph yet to give a verdict on"
    browser.press("a")
    time.sleep(1)  # what is sent by mistake arrives in that time
    assert browser.page.readings.verdicts(browser.page.page_detector.detector.version) == {}
    let_go.set()
    browser.wait_for("3 of 3")
    assert not any(browser.pressed(verdict) for verdict in ("agree", "disagree", "unsure"))
    browser.press("d")
    WebDriverWait(browser.driver, 30).until(lambda _: browser.pressed("disagree"))
    (row,) = pd.read_csv(tmp_path / "readings.csv").to_dict("records")
    assert (row["file"], row["image_sha256"]) == ("slow.dcm", hash_of(slow))


def test_row_48_the_page_asks_again_while_the_program_is_busy(browser, tmp_path, monkeypatch):
    browser.until("return document.body.dataset.shown")
    page, data = browser.page, browser.page.files[1][0].read_bytes()
    page.json("/api/folder/1")
    monkeypatch.setattr("keras_pneumo.viewer.limits.WAITING", 0)
    let_go = held(monkeypatch, page.page_detector, "answer", lambda _, name: name == "slow.dcm")

    def upload(number):
        """It is sent again when the question below, whether all turns are taken, has had its turn."""
        while (answer := page.json("/api/drop?name=slow.dcm", data + bytes([number, 0])))[0] == 503:
            time.sleep(0.05)
        return answer

    with ThreadPoolExecutor(2) as pool:
        uploads = [pool.submit(upload, number) for number in (1, 2)]
        WebDriverWait(browser.driver, 30).until(lambda _: page.json("/api/drop?name=x", b"x")[0] == 503)
        late = tmp_path / "late.dcm"
        late.write_bytes(data + b"\0\3")
        browser.drop(late, wait=False)
        time.sleep(1)  # its refusal arrives in that time
        assert browser.text("busy") == "Reading …", "it waits, and shows no error"
        let_go.set()
        browser.wait_for("3 of 3")
        assert [upload.result()[0] for upload in uploads] == [200, 200]
    assert browser.text("name") == "late.dcm"


def test_a_verdict_that_is_kept_late_is_not_shown_on_another_radiograph(browser, tmp_path, monkeypatch):
    browser.until("return document.body.dataset.shown")
    let_go = held(monkeypatch, browser.page.readings, "add")
    browser.press("a")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait_for("2 of 2")
    let_go.set()
    browser.until("return document.getElementById('agreement').textContent.startsWith('1 of 2 read')")
    assert not browser.pressed("agree")
    browser.press("d")
    browser.until("return document.getElementById('agreement').textContent.startsWith('All 2 read')")
    assert browser.pressed("disagree")
    table = pd.read_csv(tmp_path / "readings.csv")
    assert table["file"].tolist() == [name for _, name in browser.page.files]
    assert table["image_sha256"].tolist() == [hash_of(path) for path, _ in browser.page.files]
    assert table["verdict"].tolist() == ["agree", "disagree"]
    let_go.clear()
    browser.press("u")
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"no radiograph")
    browser.drop(bad)
    let_go.set()
    browser.until("return document.getElementById('agreement').textContent.includes('1 unsure')")
    assert browser.text("error").startswith("bad.dcm cannot be shown"), "nothing else went wrong"
    browser.press(Keys.ARROW_LEFT)
    browser.wait_for("2 of 3")
    assert browser.pressed("unsure")


def test_every_grey_value_is_shown_as_it_is(browser, tmp_path):
    browser.until("return document.body.dataset.shown")
    ramp = np.repeat(np.arange(4096) % 256, 16).astype(np.uint8).reshape(256, 256)  # every 16th pixel has all 256
    cv2.imwrite(str(tmp_path / "ramp.png"), ramp)
    browser.drop(tmp_path / "ramp.png")
    assert browser.text("name") == "ramp.png"
    assert browser.text("state").startswith("W 256 L 128")
    np.testing.assert_array_equal(browser.pixels(), np.arange(4096) % 256)
    browser.press("i")
    np.testing.assert_array_equal(browser.pixels(), 255 - np.arange(4096) % 256)
    browser.press("i")
    slide = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.oninput()"
    for window, level in ((101, 150), (8, 0), (512, 256)):
        browser.run(slide, "window", window)
        browser.run(slide, "level", level)
        exact = ((np.arange(256) - (level - 0.5)) / (window - 1) + 0.5) * 255  # PS3.3 C.11.2.1.2.1
        np.testing.assert_allclose(browser.pixels()[:256], np.clip(exact, 0, 255), atol=0.5 + 1e-9)
    browser.press("r")
    np.testing.assert_array_equal(browser.pixels(), np.arange(4096) % 256)


def test_nothing_is_cut_at_any_width_or_on_paper(browser):
    """Above all not "Research use only", with a detector that has a long name and was trained on phantoms."""
    sight = Sight(browser.driver)
    browser.until("return document.body.dataset.shown")
    name = "a detector of two networks for the emergency department 0.1.0+0123456789ab"
    browser.run("document.getElementById('detector').textContent = arguments[0]", name)
    browser.run("document.getElementById('synthetic').hidden = false")
    assert sight.all_faults() == {}
    inside = (
        "return [...document.querySelectorAll('.research')].every((e) => { const b = e.getBoundingClientRect();"
        " const f = e.closest('header').getBoundingClientRect();"
        " return b.left >= f.left && b.right <= f.right && b.top >= f.top && b.bottom <= f.bottom; })"
    )
    for width in (320, 390, 768, 1280):
        sight.at(width)
        assert browser.run(inside), width
        for element in browser.driver.find_elements(By.CSS_SELECTOR, ".research"):
            assert element.is_displayed()


def test_what_stands_on_the_radiograph_is_legible_on_white_too(browser):
    browser.until("return document.body.dataset.shown")
    sight = Sight(browser.driver)
    box = (
        "const b = document.getElementById(arguments[0]).getBoundingClientRect();"
        " return [b.left, b.right, b.top, b.bottom]"
    )
    for width in (390, 768, 1280):
        sight.at(width)
        left, right, top, bottom = browser.run(box, "facts")
        other = browser.run(box, "state")
        assert right <= other[0] or left >= other[1] or bottom <= other[2] or top >= other[3], width
    for name in ("facts", "state"):
        style = browser.run(
            "const s = getComputedStyle(document.getElementById(arguments[0])); return [s.color, s.backgroundColor]",
            name,
        )
        ink, back = ([float(part) for part in re.findall(r"[\d.]+", colour)] for colour in style)
        opaque = back[3] if len(back) > 3 else 1
        assert opaque * max(back[:3]) + (1 - opaque) * 255 < 100, "what is behind it, on a white radiograph"
        assert min(ink[:3]) > 200


def test_a_hand_is_shown_without_answer_outline_and_heat(browser, tmp_path):
    page_detector = browser.page.page_detector
    browser.until("return document.body.dataset.shown")
    checked = checked_detector([pydicom.dcmread(path).pixel_array for path, _ in browser.page.files], limit=0.6)
    page_detector.detector = replace(page_detector.detector, likeness=checked.likeness)
    cv2.imwrite(str(tmp_path / "hand.png"), drawn_hand())
    browser.drop(tmp_path / "hand.png")
    browser.press("h")  # a heat map is asked for, and there is none
    assert browser.text("word") == "Not like the training images"
    assert browser.text("numbers").startswith("Not like the training images: its distance to them is ")
    assert "robability 0" not in browser.text("answer")
    for part in ("scale", "errors", "dots", "hundred"):
        assert not browser.driver.find_element(By.ID, part).is_displayed(), part
    np.testing.assert_array_equal(browser.pixels(), drawn_hand().ravel()[::16])
    assert not browser.inside().any()
    assert all(not button.is_enabled() for button in browser.driver.find_elements(By.CSS_SELECTOR, "[data-verdict]"))
    browser.press("a")
    browser.drop(browser.page.files[1][0])
    assert "yes" in browser.text("word")
    assert browser.driver.find_element(By.ID, "dots").is_displayed()
    assert not (tmp_path / "readings.csv").exists(), "no verdict on what has no answer"
    assert browser.console_errors() == []


def test_the_page_can_be_loaded_again(browser):
    browser.until("return document.body.dataset.shown")
    assert browser.driver.current_url == browser.page.address + "/", "without its token"
    assert browser.run("return document.cookie") == "", "no script can read it"
    browser.run("delete document.body.dataset.shown")
    browser.driver.refresh()
    browser.until("return document.body.dataset.shown")
    assert browser.console_errors() == []


def test_keys_and_sliders_change_what_is_seen(browser):
    browser.until("return document.body.dataset.shown")
    plain = browser.pixels().astype(int)
    browser.press("i")
    np.testing.assert_array_equal(browser.pixels(), 255 - plain)
    browser.press("i", "w", "w", "w")
    narrow = browser.pixels().astype(int)
    assert narrow.std() > plain.std()
    browser.press("r")
    np.testing.assert_array_equal(browser.pixels(), plain)
    browser.press("L")
    assert browser.pixels().mean() < plain.mean(), "a higher level is darker"
    side = "return document.getElementById('grey').getBoundingClientRect().width"
    before = browser.run(side)
    browser.press("+")
    assert browser.run(side) == pytest.approx(before * 1.25, rel=0.01)
    browser.press("0")
    assert browser.run(side) == pytest.approx(before, rel=0.01)
    browser.press("o")
    assert browser.run("return getComputedStyle(document.getElementById('outline')).opacity") == "0"
    browser.press("m")  # the segmenter's map, which is sure of bright places
    width, strongest = browser.run(
        "const c = document.getElementById('heat');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let most = 0; for (let i = 3; i < d.length; i += 4) most = Math.max(most, d[i]); return [c.width, most];"
    )
    assert (width, strongest > 200) == (512, True)
    browser.run("const w = document.getElementById('window'); w.value = 60; w.dispatchEvent(new Event('input'));")
    assert "W 60" in browser.text("state")
    browser.run("const p = document.getElementById('prevalence'); p.value = 2; p.dispatchEvent(new Event('input'));")
    wrong = (1 - 152 / 162) * 0.98 / ((1 - 152 / 162) * 0.98 + 30 / 38 * 0.02)
    assert f"about {round(100 * wrong)} would be wrong" in browser.text("hundred")
    browser.press("?")
    assert browser.driver.find_element(By.ID, "keys").is_displayed()
    browser.press(Keys.ESCAPE)
    assert browser.console_errors() == []


def test_a_hostile_file_gets_a_sentence_and_the_page_goes_on(browser, tmp_path):
    browser.until("return document.body.dataset.shown")
    hostile = tmp_path / "<img src=x onerror=document.title='owned'>.dcm"
    hostile.write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)) * 4)
    browser.drop(hostile)
    error = browser.text("error")
    assert error.startswith("<img src=x")
    assert "cannot be shown" in error
    assert "owned" not in browser.driver.title
    assert not browser.run("return document.body.dataset.shown"), "no answer stands beside it"
    assert not browser.driver.find_element(By.ID, "answer").is_displayed()
    liar = pydicom.dcmread(browser.page.files[0][0])
    liar.Rows = 60000
    liar.save_as(tmp_path / "liar.dcm")
    browser.drop(tmp_path / "liar.dcm")
    assert browser.text("error").startswith("liar.dcm cannot be shown")
    good = tmp_path / "good.dcm"
    good.write_bytes(browser.page.files[0][0].read_bytes())
    browser.drop(good)
    assert browser.text("name") == "good.dcm"
    assert not browser.driver.find_element(By.ID, "error").is_displayed()
    assert browser.console_errors() == []


def test_a_folder_or_a_file_that_is_gone_gets_a_true_sentence(browser, tmp_path):
    browser.until("return document.body.dataset.shown")
    (tmp_path / "a folder").mkdir()
    browser.drop(tmp_path / "a folder")
    assert browser.text("error").startswith("a folder cannot be read. It is a folder, or")
    gone = tmp_path / "gone.dcm"
    gone.write_bytes(browser.page.files[0][0].read_bytes())
    browser.drop(gone)
    assert browser.text("name") == "gone.dcm"
    gone.unlink()
    browser.press(Keys.ARROW_LEFT)
    browser.wait_for("3 of 4")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait_for("4 of 4")
    assert browser.text("error").startswith("gone.dcm cannot be read.")
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    browser.wait_for("2 of 4")
    assert browser.text("error") == ""
    assert browser.console_errors() == []


@pytest.mark.parametrize("cut", [(slice(0, 1024), slice(160, 865)), (slice(300, 901), slice(0, 1024))])
def test_a_radiograph_that_is_not_square_is_shown_in_its_proportions(browser, tmp_path, cut):
    browser.until("return document.body.dataset.shown")
    path = cut_dicom(browser.page.files[0][0], tmp_path / "cut.dcm", *cut)
    browser.drop(path)
    assert browser.text("name") == "cut.dcm"
    pixels = decode_bytes(path.read_bytes(), path.name).pixels
    rows, columns = pixels.shape
    assert f"{columns} × {rows} pixels" in browser.text("facts")
    assert f"The image is not square: it has {rows} rows and {columns} columns" in browser.text("notes")
    np.testing.assert_array_equal(browser.pixels(), pixels.ravel()[::16])
    boxes = [
        browser.run(
            f"const b = document.querySelector('{layer}').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
        )
        for layer in ("#grey", "#heat", "#outline", "#radiograph")
    ]
    np.testing.assert_allclose(boxes[1:3], [boxes[0]] * 2, atol=0.5)
    assert boxes[0][2] / boxes[0][3] == pytest.approx(columns / rows, rel=0.005)
    assert max(boxes[0][2] / boxes[3][2], boxes[0][3] / boxes[3][3]) == pytest.approx(1, abs=0.01), "as large as fits"
    # The outline's grid is the square around the radiograph: where its lattice lies on the radiograph, both agree.
    square = np.zeros((1024, 1024), bool)
    top, left = (1024 - rows) // 2, (1024 - columns) // 2
    square[top : top + rows, left : left + columns] = expected_mask(pixels)
    inside = browser.inside()
    assert dice(inside, square[8::16, 8::16]) > 0.95
    at = browser.run(
        "const s = document.getElementById('outline'), m = s.getScreenCTM(), p = s.createSVGPoint();"
        f"p.x = {left - 0.5}; p.y = {top - 0.5}; const q = p.matrixTransform(m); return [q.x, q.y];"
    )
    np.testing.assert_allclose(at, boxes[0][:2], atol=0.5, err_msg="the grid's point at the radiograph's corner")
    assert browser.console_errors() == []


@pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not here")
def test_a_real_file_dropped_is_shown_right(browser, tmp_path):
    browser.until("return document.body.dataset.shown")
    path = sorted(REAL.glob("*.dcm"))[0]
    browser.drop(path)
    assert browser.text("name") == path.name
    check_shown(browser, path, tmp_path)
    for name in ("PatientName", "PatientID"):
        value = str(pydicom.dcmread(path, stop_before_pixels=True).get(name))
        assert value not in browser.driver.page_source
