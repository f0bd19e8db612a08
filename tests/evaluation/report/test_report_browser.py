"""All pages in headless Chromium, from file://: nothing is cut at any width or on paper, and the gallery filters."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from board_lab import board_of, submit, write_truth

pytest.importorskip("selenium", reason="selenium is not installed")
import seeds_lab
from browser_lab import PAPER, Sight, chromium, needs_chromium
from ladder_lab import ladder, result
from selenium.webdriver.common.by import By

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.evaluation.board.subgroups import scores_within
from keras_pneumo.evaluation.report.calibration_report import calibration_report
from keras_pneumo.evaluation.report.external_report import external_report
from keras_pneumo.evaluation.report.report import write_comparison_report, write_run_report
from keras_pneumo.evaluation.report.subgroup_report import subgroup_report
from keras_pneumo.parity.comparison import Difference
from keras_pneumo.parity.page import write_page
from keras_pneumo.parity.seeds.page import write_answer
from keras_pneumo.parity.seeds.study import Study, compare_frameworks

pytestmark = [pytest.mark.slow, needs_chromium]

LONG = "resnet50_unet_five_folds, image size 512, flips and shifts"
BENCHMARKS = Path(__file__).parents[3] / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def sight(tmp_path_factory):
    window = Sight(chromium(tmp_path_factory.mktemp("profile")))
    yield window
    window.driver.quit()


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=100)


def radiograph(_image_id):
    return np.full((64, 64), 90, np.uint8)


def sections(board):
    """Subgroups, calibration and predictions by epoch, with long names."""
    groups = {"maker": pd.Series(["A MAKER OF RADIOGRAPHY SYSTEMS", "PHILIPS"] * 50)}
    history = pd.DataFrame({"image_id": [f"1.2.276.0.7230010.3.1.4.8323329.{n}" for n in range(9)]})
    history["pneumothorax"] = [1, 0, 0] * 3
    for epoch in range(1, 15):
        history[f"epoch_{epoch}"] = np.linspace(0.1, 0.9, 9) ** (1 / epoch)
    probability = board.teams[0].probability
    return {
        "subgroups": subgroup_report(scores_within(board, groups), board.headline),
        "calibration": calibration_report(board, probability**2, probability, ["Calibrated by temperature."]),
        "history": history,
    }


def run_page(folder, truth):
    board = board_of(truth, submit(folder / "a", truth, LONG, 1), headline="dice")
    log = pd.DataFrame({"epoch": range(1, 15), "loss": np.geomspace(9, 1e-3, 14), "learning_rate": 1e-5})
    log["validation_auroc"] = 0.5 + np.arange(14) / 1e6
    facts = {"experiment": {"name": "x" * 300}, "knots": [[0.1, 0.2]] * 9, "trained_on": "SIIM-ACR (200 images)"}
    return write_run_report(folder / "run.html", board, log, facts, radiograph, **sections(board))


def external_page(folder, truth):
    board = board_of(truth, submit(folder / "a", truth, LONG, 1))
    home = board.table.iloc[0].to_dict()
    external = external_report(board, ["Trained on phantoms."], ["None of 100 images was learned from."], home)
    more = sections(board) | {"history": None}
    return write_run_report(folder / "external.html", board, external=external, image=radiograph, **more)


def comparison_page(folder, truth):
    names = (LONG, "A" * 70, "B", LONG.replace("512", "1024"), "W" * 30)
    teams = [
        submit(folder / str(n), truth, name, 1 + n / 4, seed=n, training_hours=n + 0.5, image_size=512)
        for n, name in enumerate(names)
    ]
    return write_comparison_report(folder / "comparison.html", board_of(truth, *teams, headline="dice"), radiograph)


def parity_page(folder, _truth):
    broken = Difference(1.0, 0.2, 0.2, first="layer3.0.downsample.1.running_var", worst="layer1", compared=9)
    results = [result(n, "Gradients of the loss", "the decoder’s last block") for n in range(1, 9)]
    return write_page(
        folder / "parity.html", ladder(*results, result(9, "Forward", "a", broken, None, "no such layer"))
    )


def bench_page(folder, _truth):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import bench_page as page
    finally:
        sys.path.remove(str(BENCHMARKS))
    speeds = {"speed": 10.123, "memory_mb": 900.0}
    name = "prepare 251 radiographs of SIIM at two sizes, whole command"
    row = {"name": name, "unit": "images/s", "goal": 1.0, "ratio": 1.25, "low": 1.1, "high": 40, "ours": speeds}
    steps = [{"images": n, "seconds": n / 9, "memory_mb": 400.0 + n / 1e3} for n in (30, 300, 3000)]
    rows = [row | {"theirs": speeds, "note": "why " * 90}, row | {"note": ""}, row | {"growth": steps, "note": ""}]
    machine = {"versions": {"keras": "3.15"}, "torch_versions": {}, "cpu": "Xeon", "cores": 2, "instructions": []}
    machine |= {"memory_gb": 8, "gpu": "", "os": "Linux", "python": "3.11"}
    path = folder / "bench.html"
    path.write_text(page.page({"machine": machine, "rows": rows}))
    return path


PAGES = {
    "run": run_page,
    "external": external_page,
    "comparison": comparison_page,
    "parity": parity_page,
    "bench": bench_page,
}


@pytest.mark.parametrize("kind", PAGES)
def test_nothing_is_cut_at_any_width_or_on_paper(sight, tmp_path, truth, kind):
    sight.open(PAGES[kind](tmp_path, truth))
    assert sight.all_faults() == {}
    requests = "return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
    assert sight.driver.execute_script(requests) == 0


def test_nothing_of_a_comparison_over_seeds_is_cut(sight, tmp_path, prepared_folder):
    experiment = CLASSIFIER.replace(name="tiny_classifier_of_phantoms", encoder="resnet18", weights="random", seed=3)
    study = Study(
        experiment.replace(image_size=64), load_prepared(prepared_folder), tmp_path / "out", seeds=2, controls=1
    )
    lab = Path(seeds_lab.__file__)
    comparison = compare_frameworks(study, Path(sys.executable), lab, [sys.executable, str(lab)], None)
    sight.open(write_answer(comparison))
    assert sight.all_faults() == {}


def test_a_table_is_one_where_it_fits_and_cards_where_not(sight, tmp_path, truth):
    sight.open(comparison_page(tmp_path, truth))
    shape = "return getComputedStyle(document.querySelector('table.board tbody tr')).display"
    shown = (
        "return [...document.querySelectorAll('table.board tbody tr:first-child td')]"
        ".map((e) => getComputedStyle(e, '::before').content)"
    )
    for width, paper, expected in ((1280, False, "table-row"), (390, False, "grid"), (PAPER, True, "grid")):
        sight.at(width, paper=paper)
        assert sight.driver.execute_script(shape) == expected
        names = sight.driver.execute_script(shown)
        assert ('"Dice on positives"' in names) == ('"Positives missed"' in names) == (expected == "grid")


def test_dark_and_paper_can_be_read(sight, tmp_path, truth):
    sight.open(run_page(tmp_path, truth))
    background = "return getComputedStyle(document.body).backgroundColor"
    sight.at(1280)
    light = sight.driver.execute_script(background)
    sight.at(1280, dark=True)
    assert sight.driver.execute_script(background) != light
    for selector in ("body", ".fine", "h1", ".contents a", "td small", ".chart text"):
        assert sight.contrast(selector) > 4.5, selector
    sight.at(PAPER, dark=True, paper=True)
    assert sight.driver.execute_script(background) == "rgb(255, 255, 255)", "paper is white for dark screens, too"
    assert sight.contrast("td small") > 7


def test_filters_open_from_an_address(sight, tmp_path, truth):
    sight.at(1280)
    sight.open(comparison_page(tmp_path, truth).as_uri() + "#outcome=disagree&size=none")
    cards = sight.driver.find_elements(By.CSS_SELECTOR, ".card[data-tags]")
    shown = [card for card in cards if card.is_displayed()]
    assert shown
    assert all(card.get_attribute("data-tags").startswith("disagree") for card in shown)
    assert all(card.get_attribute("data-size") == "none" for card in shown)
    assert sight.driver.find_element(By.ID, "shown").text.startswith(f"{len(shown)} of ")
    assert len(shown) < len(cards)


def test_clicks_on_a_phone(sight, tmp_path, truth):
    sight.at(390)
    sight.open(comparison_page(tmp_path, truth))
    find = sight.driver.find_element

    def shown():
        return len(sight.driver.find_elements(By.CSS_SELECTOR, ".card[data-tags]:not([hidden])"))

    first, fitting = map(int, re.match(r"(\d+) of (\d+)", find(By.ID, "shown").text).groups())
    assert first == shown() == 24 < fitting
    more = find(By.ID, "more")
    assert more.text == f"Show all {fitting}"
    sight.driver.execute_script("arguments[0].click()", more)
    assert shown() == fitting
    assert not more.is_displayed()
    button = find(By.CSS_SELECTOR, "button[data-value=wrong]")
    sight.driver.execute_script("arguments[0].click()", button)
    assert button.get_attribute("aria-pressed") == "true"
    assert find(By.ID, "shown").text.startswith(f"{shown()} of ")
    outline = find(By.CSS_SELECTOR, ".radiograph path")
    sight.driver.execute_script("arguments[0].click()", find(By.ID, "outlines"))
    assert outline.value_of_css_property("display") == "none"


def test_prints(sight, tmp_path, truth):
    sight.open(comparison_page(tmp_path, truth))
    buttons = sight.driver.find_element(By.CSS_SELECTOR, ".filters button")
    sight.at(1280)
    assert buttons.is_displayed()
    paper = sight.pdf()
    assert paper.startswith(b"%PDF")
    assert len(paper) > 10_000
    assert not buttons.is_displayed(), "nobody presses a button on paper"
    assert sight.driver.find_element(By.ID, "shown").is_displayed(), "but how many of the images are there is said"
