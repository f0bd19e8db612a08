"""Every example of docs/your-data.md is read as the page says."""

import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from small_siim import radiograph, write_png

from keras_pneumo.data.labels.finding import find_labels, search_labels
from keras_pneumo.data.labels.known import options_of
from keras_pneumo.data.radiographs.reading import find_images

PAGE = (Path(__file__).parents[3] / "docs" / "your-data.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = {title: text for title, text in SECTIONS.items() if "| read as |" in text}
FILE = re.compile(r"^`([^`\n]+)`\n\n```(?:csv|json)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def options(text):
    """The options of the section's command."""
    words = shlex.split(re.search(r"^keras-pneumo prepare .*$", text, re.MULTILINE).group(0))
    given = dict(itertools.pairwise(words))
    chosen = {name: given.get(f"--{name.replace('_', '-')}") for name in ("image_column", "label_column", "blank")}
    return options_of(given.get("--uncertain", "ignore"), readers=int(given.get("--readers", 2)), **chosen)


def test_the_page_has_an_example_for_each_form():
    assert len(EXAMPLES) == 13


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_is_read_as_the_page_says(tmp_path, title):
    text = EXAMPLES[title]
    files = FILE.findall(text)
    for name, content in files:
        (tmp_path / name).write_text(content)
    listing = re.search(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name in listing.group(1).split() if listing else []:
        mask = np.zeros((64, 64), np.uint8)
        mask[8:24, 8:24] = 255
        write_png(tmp_path / name, mask if "mask" in name else radiograph(1))
    wanted = dict(re.findall(r"^\| (\S+) \| ([a-z, ]+) \|$", text, re.MULTILINE))
    wanted.pop("image", None)
    paths = find_images(tmp_path).paths
    table = tmp_path / files[0][0] if files else None
    labels = find_labels(search_labels(tmp_path, paths, None if len(files) < 2 else table, options(text)), wanted)
    found = {
        name: "positive" * label.positive
        + "negative" * (not label.positive)
        + ", with mask" * label.has_mask
        + ", with box" * bool(label.boxes)
        for name, label in labels.images.items()
    }
    assert found | dict.fromkeys(labels.left_out, "left out") == wanted
    assert labels.rejected == []
