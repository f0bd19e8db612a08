"""Tests that the links, pictures, make targets, commands, options and paths on all pages exist."""

import configparser
import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from keras_pneumo.cli import app

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "experiments/README.md"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"^(?:experiments|keras_pneumo|tests|docs|\.ci)/[\w./*-]+$")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())


def prose(page):
    """The text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def blocks(text):
    """The lines of each block of shell commands. Lines that end in a backslash are joined with the next."""
    for language, body in FENCE.findall(text):
        if not language:
            yield from body.replace("\\\n", " ").splitlines()


def words_of(line):
    """The words of a shell line, without its comment. A line in prose may be incomplete, or no shell at all."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def inline(text):
    """The code between single backquotes; it may go over a line break."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def shell_lines(page):
    """The words of every command on a page, in blocks and in prose."""
    text = page.read_text()
    return [words for line in [*blocks(text), *inline(text)] if (words := words_of(line))]


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page, root=REPOSITORY):
    """Links and pictures of a page whose file or heading does not exist, or is outside the checkout."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(root) or not file.exists() or (anchor and anchor not in headings(file)):
            yield target


@functools.cache
def commands():
    """The command line's commands by name."""
    return typer.main.get_command(app).commands


@functools.cache
def options(name):
    """The names of a command's options."""
    return {word for parameter in commands()[name].params for word in (*parameter.opts, *parameter.secondary_opts)}


def wrong_words(words):
    """The words of a line in prose, starting with keras-pneumo, that are no command or no option of it."""
    if len(words) > 1 and not words[1].startswith("-") and words[1] != "COMMAND" and words[1] not in commands():
        return [words[1]]
    allowed = options(words[1]) | {"--help"} if len(words) > 1 and words[1] in commands() else {"--help", "--version"}
    return [word for word in words[1:] if word.startswith("-") and word.split("=")[0] not in allowed]


@pages
def test_links_and_pictures_exist(page):
    assert not list(broken_links(page))


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([^)#\s]+)\)", prose(PAGES[0])))
    assert {page.relative_to(REPOSITORY).as_posix() for page in PAGES[1:]} <= linked


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Two words\n[a](gone.md) [b](#two-words) [c](#three) ![d](../out.png) [e](https://x)\n")
    assert list(broken_links(page, tmp_path)) == ["gone.md", "#three", "../out.png"]


@pages
def test_make_targets_and_variables_exist(page):
    phony = MAKEFILE[MAKEFILE.index(".PHONY:") :].splitlines()[0].split()[1:]
    for words in shell_lines(page):
        if words[0] != "make":
            continue
        for word in words[1:]:
            name, given, _ = word.partition("=")
            assert re.search(rf"\$\({name}\b|\bifdef {name}\b", MAKEFILE) if given else name in phony, words


@pages
def test_commands_in_blocks_are_accepted(page):
    for line in blocks(page.read_text()):
        words = words_of(line)
        if words[:1] == ["keras-pneumo"] and words[1] != "COMMAND":
            try:  # required arguments, options and their values; nothing is run
                commands()[words[1]].make_context(words[1], words[2:])
            except Exception as error:
                pytest.fail(f"{line}: {error}")


@pages
def test_commands_and_options_in_prose_exist(page):
    every = set().union(*(options(name) for name in commands())) | {"--help", "--version"}
    for words in shell_lines(page):
        if words[0] == "keras-pneumo":
            assert not wrong_words(words), words
        elif words[0] in commands() and len(words) > 1:
            assert not wrong_words(["keras-pneumo", *words]), words
        elif words[0].startswith("--"):
            assert words[0].split("=")[0] in every, words


def test_a_wrong_option_is_found():
    assert wrong_words(["keras-pneumo", "train", "x.py", "--dta", "d", "--data", "d"]) == ["--dta"]
    assert wrong_words(["keras-pneumo", "trian"]) == ["trian"]
    assert not wrong_words(["keras-pneumo", "export", "RUN", "--format", "onnx"])


@pages
def test_named_files_exist_and_have_the_options(page):
    for words in shell_lines(page):
        script = ""
        for word in words:
            path = word.rstrip(",;:.")
            if PATH.match(path):
                assert list(REPOSITORY.glob(path)), words
                script = path if path.endswith(".py") and "python" in Path(words[0]).name else script
            elif script and word.startswith("--"):
                sources = [REPOSITORY / script, *(REPOSITORY / script).parent.glob("training.py")]
                assert any(f'"{word}"' in source.read_text() for source in sources), words


def test_every_dependency_has_a_reason_in_the_readme():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    required = "\n".join([setup["options"]["install_requires"], *setup["options.extras_require"].values()])
    names = set(re.findall(r"^[A-Za-z][\w-]*", required, re.MULTILINE))
    table = re.search(r"^\| dependency \|.*?\n\n", PAGES[0].read_text(), re.MULTILINE | re.DOTALL).group()
    named = set(re.findall(r"[a-z][\w-]+", " ".join(row.split("|")[1] for row in table.strip().splitlines())))
    assert not names - named
    extras = {name for page in PAGES for name in re.findall(r"(?:keras-pneumo|\.)\[(\w+)\]", page.read_text())}
    extras |= {name for page in PAGES for name in re.findall(r"extra `(\w+)`", page.read_text())}
    assert extras <= set(setup["options.extras_require"])


@pytest.mark.parametrize(
    ("target", "folder"), [(name, "my radiographs") for name in ("train-classifier", "compare", "torch-segmenter")]
)
def test_make_passes_paths_with_spaces(target, folder):
    ready = [part for name in (".venv/.ready", ".venv-torch/.ready") for part in ("-o", name)]
    line = ["make", "-n", *ready, target, f"DATA={folder}", "OUT=my run"]
    output = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    commands_run = [shlex.split(text) for text in output.splitlines() if "bin/" in text and "pip" not in text]
    assert any(folder in words and "my run" in words for words in commands_run), output


def test_make_passes_settings():
    line = [
        "make",
        "--no-print-directory",
        "-n",
        "-o",
        ".venv/.ready",
        "train-segmenter",
        "DATA=x",
        "SET=epochs=5 augmentation.flip=0",
    ]
    output = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    words = shlex.split(output.splitlines()[-1])
    assert words[-4:] == ["--set", "epochs=5", "--set", "augmentation.flip=0"], words


def test_the_package_index_gets_links_and_pictures_that_work_there(tmp_path, monkeypatch):
    import runpy

    import setuptools

    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    links = re.findall(r"(!?)\[[^\[\]]*\]\(([^)\s]+)\)", given["long_description"])
    assert len(links) == len(re.findall(r"\]\(([^)\s]+)\)", PAGES[0].read_text()))
    for picture, target in links:
        home = "https://raw.githubusercontent.com/" if picture else "https://github.com/"
        assert target.startswith((f"{home}keras-pneumo/keras-pneumo/", "#")), target
        path = target.split("/v0.1.0/")[1].partition("#")[0]
        assert (REPOSITORY / path).is_file(), path


def test_no_page_needs_what_only_its_makers_have():
    for page in PAGES:
        assert not re.search(r"\.\./shared|siim_(mini|more)|/work/", page.read_text()), page
