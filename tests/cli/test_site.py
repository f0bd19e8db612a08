"""The documentation site: links turned for it, its pages made from the program, and the check of what was built."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import keras_pneumo as kp
from keras_pneumo.cli import COMMANDS

REPOSITORY = Path(__file__).parents[2]
HOOKS = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "docs/site/hooks.py")))


@pytest.mark.parametrize(
    ("source", "target", "there"),
    [
        ("README.md", "docs/data.md#phantoms", "data.md#phantoms"),
        ("README.md", "experiments/README.md", "results.md"),
        ("README.md", "notebooks/first_steps.ipynb", "notebooks/first_steps.ipynb"),
        ("docs/data.md", "../README.md", "index.md"),
        ("docs/data.md", "phantoms.jpg", "phantoms.jpg"),
        ("docs/data.md", "../experiments/README.md#speed", "results.md#speed"),
        ("docs/data.md", "../keras_pneumo/config.py", f"{HOOKS.HOME}/blob/main/keras_pneumo/config.py"),
        ("experiments/README.md", "benchmarks/notes.md", f"{HOOKS.HOME}/blob/main/experiments/benchmarks/notes.md"),
        ("docs/data.md", "#phantoms", "#phantoms"),
        ("docs/data.md", "gone.md", "gone.md"),  # a dead link stays one, so that the build finds it
        ("docs/data.md", "https://example.org/x.md", "https://example.org/x.md"),
    ],
)
def test_links_lead_to_the_sites_pages(source, target, there):
    assert HOOKS.for_the_site(f"See [`it`]({target}).", source) == f"See [`it`]({there})."


def test_code_is_left_alone_and_the_checkouts_line_of_links_goes():
    text = "# Title\n\n[README](../README.md) | here |\n[there](data.md)\n\nText.\n\n```\n[a](../README.md)\n```\n"
    assert HOOKS.for_the_site(text, "docs/x.md") == "# Title\n\nText.\n\n```\n[a](../README.md)\n```\n"


def test_every_page_is_in_one_of_the_four_parts():
    text = (REPOSITORY / "mkdocs.yml").read_text()
    named = re.findall(r"^      - .*: (\S+\.md)$", text, re.MULTILINE)
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")}
    assert sorted(named) == sorted(pages | set(HOOKS.PAGES.values()) | {"commands.md", "reference.md"})
    assert re.findall(r"^  - ([A-Z][\w ]+):$", text, re.MULTILINE) == ["Start", "How to", "Explanation", "Reference"]


def test_the_reference_has_every_public_name_where_it_is_defined():
    paths = dict(re.findall(r"^## kp\.(\w+)\n\n::: (\S+)$", HOOKS.python_reference(), re.MULTILINE))
    assert set(paths) == set(kp.__all__)
    for path in re.findall(r"^::: (\S+)$", HOOKS.python_reference(), re.MULTILINE):
        module, _, name = path.rpartition(".")
        __import__(module)
        assert hasattr(sys.modules[module], name), path


def test_the_page_of_commands_has_every_command_and_option():
    commands = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "docs/site/commands.py")))
    text = commands.page()
    assert re.findall(r"^## keras-pneumo (\S+)$", text, re.MULTILINE) == list(COMMANDS)
    compare = text[text.index("## keras-pneumo compare\n") : text.index("## keras-pneumo audit-split\n")]
    assert "| `--truth` | A prepared folder, its truth.csv, or a SIIM label csv. | required |" in compare
    assert "| `--allow-missing`, `--no-allow-missing` | Count images without a prediction as 'no'. |  |" in compare
    assert "| `--resamples` | Number of resamples of the patients. | `10000` |" in compare
    assert "| `--seed` | Seed of the resampling. | `0` |" in compare
    assert "| `SUBMISSIONS` | A submission, a run, or a folder of several. | required |" in compare
    assert "| `--out` | Where board.csv, per_image.csv and report.html go. | required |" in compare
    assert "Example, after training: `keras-pneumo compare" in compare


def site(folder, **pages):
    """A built site of these pages."""
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return folder


def test_a_sound_site_has_no_faults(tmp_path):
    (tmp_path / "x.css").write_text("a { background: url(x.png) }")
    sound = '<link rel="stylesheet" href="x.css"><h1 id="top"></h1><a href="two.html#there"></a><a href="#top"></a>'
    assert HOOKS.faults_of_site(site(tmp_path, one=sound, two='<p id="there"><a href="https://x.org">')) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="gone.html">', "one.html leads to gone.html, which is not there"),
        ('<a href="two.html#gone">', "one.html leads to two.html#gone, whose anchor is not there"),
        ('<a href="#gone">', "one.html leads to #gone, whose anchor is not there"),
        ('<img src="gone.png">', "one.html leads to gone.png, which is not there"),
        ('<script src="https://cdn.org/x.js">', "one.html fetches https://cdn.org/x.js"),
        ('<link rel="stylesheet" href="//cdn.org/x.css">', "one.html fetches //cdn.org/x.css"),
    ],
)
def test_each_fault_of_a_site_is_named(tmp_path, text, fault):
    assert HOOKS.faults_of_site(site(tmp_path, one=text, two="")) == [fault]


def test_a_style_that_fetches_is_named(tmp_path):
    (tmp_path / "x.css").write_text("@font-face { src: url('https://fonts.org/x.woff2') }")
    assert HOOKS.faults_of_site(site(tmp_path, one="")) == ["x.css fetches https://fonts.org/x.woff2"]
