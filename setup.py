"""Adds to setup.cfg what it cannot say: README as the package index shows it, with absolute links and pictures.

README's own links and pictures are files of the checkout, so that they work without a network and at any commit.
"""

import configparser
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
SETTINGS = configparser.ConfigParser()
SETTINGS.read(HERE / "setup.cfg", encoding="utf-8")
HOME = "https://github.com/keras-pneumo/keras-pneumo"
RAW = HOME.replace("github.com", "raw.githubusercontent.com")
RELATIVE = re.compile(r"(!?)(\[[^\[\]]*\])\((?!\w+:|#)([^)\s]+)\)")


def description() -> str:
    """README with every relative link turned to the project's home, at the tag of this version."""
    tag = f"v{SETTINGS['metadata']['version']}"

    def absolute(match: re.Match[str]) -> str:
        picture, label, path = match.groups()
        return f"{picture}{label}({f'{RAW}/{tag}' if picture else f'{HOME}/blob/{tag}'}/{path})"

    return RELATIVE.sub(absolute, (HERE / "README.md").read_text(encoding="utf-8"))


setup(long_description=description())
