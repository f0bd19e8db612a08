"""Tests of what installs the project: setup.cfg, the Makefile's set-up, and the pages and files that name them."""

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest
import wheel_check

from keras_pneumo import __version__
from keras_pneumo.cli.examine import TESTED_PYTHON

REPOSITORY = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(REPOSITORY / "setup.cfg")
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PINS = REPOSITORY / "experiments/torch_team/constraints.txt"


def names_of(requirements):
    """The packages' names in a list of requirements, in lower case."""
    return {re.match(r"[\w.-]+", line)[0].lower() for line in requirements.splitlines() if re.match(r"\w", line)}


def pinned(text):
    """The packages' names in a file of pinned versions."""
    return set(re.findall(r"^([\w.-]+)(?:\[.*\])?==", text, re.MULTILINE))


def test_every_check_of_make_lint_runs_before_a_commit_and_no_other():
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    lint = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    hooks = re.findall(r"^ +entry: (.+)$", (REPOSITORY / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert hooks == lint


def test_the_workflow_runs_the_script_that_everybody_runs():
    workflow = (REPOSITORY / ".github/workflows/ci.yml").read_text()
    assert re.search(r"run: .*bash \.ci/run$", workflow, re.MULTILINE)


def test_the_citation_has_the_packages_version_licence_and_home():
    citation = dict(re.findall(r"^([\w-]+): (\S.*)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE))
    metadata = SETUP["metadata"]
    assert citation["version"] == metadata["version"] == __version__
    assert citation["license"] == metadata["license"]
    assert citation["repository-code"] == metadata["url"]
    assert metadata["url"] in (REPOSITORY / "CONTRIBUTING.md").read_text()
    assert all(line.split(" = ")[1].startswith(metadata["url"]) for line in metadata["project_urls"].split("\n")[1:])


def test_every_python_that_is_promised_is_named_everywhere():
    versions = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    low, high = (".".join(map(str, end)) for end in TESTED_PYTHON)
    assert (versions[0], versions[-1]) == (low, high)
    assert SETUP["options"]["python_requires"] == f">={low}"
    assert f"PYTHONS ?= {','.join(versions)}\n" in MAKEFILE
    assert f"Python {low} to {high}" in (REPOSITORY / "README.md").read_text()


def test_extras_that_messages_name_exist():
    extras = set(SETUP["options.extras_require"])
    for path in [*(REPOSITORY / "keras_pneumo").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.md")]:
        for names in re.findall(r"(?:keras-pneumo|\.)\[([\w,]+)\]'", path.read_text()):
            assert set(names.split(",")) <= extras, path


def test_every_dependency_has_its_reason_in_the_readme():
    table = re.search(r"\| dependency \|.*?\n\n", (REPOSITORY / "README.md").read_text(), re.DOTALL)[0].lower()
    listed = set(re.findall(r"[\w.-]+", table))
    needed = names_of(SETUP["options"]["install_requires"])
    for requirements in SETUP["options.extras_require"].values():
        needed |= names_of(requirements)
    assert needed <= listed, needed - listed


def test_packages_with_private_names_that_are_used_have_an_upper_bound():
    for extra in ("train", "gpu"):
        for line in SETUP["options.extras_require"][extra].splitlines():
            if line.startswith(("tensorflow", "keras")):
                assert ",<" in line


def make(target, *settings, **environment):
    """Runs a target of the Makefile with other folders; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-C", REPOSITORY, "--no-print-directory", target, *settings],
        capture_output=True,
        text=True,
        env=kept | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installers(tmp_path):
    """A folder that looks like an environment; its Python and uv only write down how they were called, in ``calls``.

    Its Python fails where a call has the word ``--index-url`` and INDEX is ``unreachable``; uv where UV_FAILS is set.
    """
    (tmp_path / "bin").mkdir()
    for name, fails in (("python", 'case "$INDEX $*" in unreachable*--index-url*) exit 1;; esac'), ("uv", "")):
        program = tmp_path / "bin" / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $@" >> "$(dirname "$0")/../calls"\n{fails or "exit ${UV_FAILS:-0}"}\n'
        )
        program.chmod(0o755)
    return tmp_path


def calls(installers):
    """How Python and uv were called, a line each."""
    return (installers / "calls").read_text().splitlines()


CUDA = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")


def test_without_a_gpu_pytorchs_cpu_build_is_installed(installers):
    settings = ("GPU=", "TORCH_BUILD=cpu", "TORCH_CPU_INDEX=https://cpu.example")
    printed = make("setup-torch", f"TORCH={installers}", f"UV={installers}/bin/uv", *settings)
    first, second = calls(installers)
    assert first.startswith("python -m pip install")
    assert "--no-deps" in first
    assert f"--index-url https://cpu.example -r {installers}/cpu.txt" in first
    versions = dict(re.findall(r"^(torch|torchvision)==([\d.]+)", PINS.read_text(), re.MULTILINE))
    wanted = [f"{name}=={version}+cpu" for name, version in versions.items()]
    assert (installers / "cpu.txt").read_text().split() == wanted
    assert second.startswith("uv pip install")
    assert second.endswith(f"--python {installers}/bin/python --require-hashes -r {installers}/pins.txt")
    every, rest = pinned(PINS.read_text()), pinned((installers / "pins.txt").read_text())
    assert every - rest == {name for name in every if CUDA.match(name)}
    assert len(every - rest) > 10
    assert (installers / "pins.txt").read_text().count("--hash") > 100
    assert re.findall(r"of PyTorch (\d) of 3", printed) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [(["GPU=GPU 0"], "PyPI's build"), (["GPU=", "TORCH_BUILD=cpu"], "cannot be reached: PyPI's build is installed")],
)
def test_with_a_gpu_or_without_the_index_pypis_build_is_installed(installers, settings, words):
    uv = f"UV={installers}/bin/uv"
    assert words in make("setup-torch", f"TORCH={installers}", uv, *settings, INDEX="unreachable")
    assert len(calls(installers)) == len(settings), "the index of CPU builds is asked only where there is no GPU"
    assert calls(installers)[-1].endswith(f"--require-hashes -r {installers}/pins.txt")
    assert (installers / "pins.txt").read_text() == PINS.read_text()


def test_cpu_builds_are_compared_with_hashes_where_these_are_known(installers):
    own = installers / "known.txt"
    own.write_text("torch==9.9+cpu --hash=sha256:00\n")
    settings = (f"UV={installers}/bin/uv", "TORCH_BUILD=cpu", f"TORCH_CPU_PINS={own}")
    make("setup-torch", f"TORCH={installers}", *settings)
    assert (installers / "cpu.txt").read_text() == own.read_text()


@pytest.mark.parametrize(("gpu", "files"), [("", 1), ("GPU 0", 2)])
def test_the_set_up_says_what_it_does(installers, gpu, files):
    printed = make("setup", f"VENV={installers}", f"UV={installers}/bin/uv", f"GPU={gpu}")
    assert re.findall(r"Set-up (\d) of 3", printed) == ["1", "2", "3"]
    pins = ("constraints.txt", "constraints-gpu.txt")[:files]
    packages = sum(len(pinned((REPOSITORY / name).read_text())) for name in pins)
    assert f"{packages} packages that have these hashes: constraints.txt" in printed
    first, second = calls(installers)
    assert first.startswith("uv pip install")
    assert first.count("-r constraints") == files
    assert "--require-hashes" in first
    assert second.startswith("python -m pip install")
    assert second.endswith("-e .")


def test_without_hashes_none_are_compared(installers):
    settings = (f"VENV={installers}", f"UV={installers}/bin/uv", "GPU=", "HASHES=")
    assert "without comparing hashes" in make("setup", *settings, UV_FAILS="2")
    by_uv, by_pip, _ = calls(installers)
    assert by_uv.endswith("--no-verify-hashes -r constraints.txt")
    assert by_pip.endswith(f"-r {installers}.pins")
    assert "--require-hashes" not in by_uv + by_pip


def test_pip_installs_where_uv_cannot(installers):
    settings = (f"VENV={installers}", f"UV={installers}/bin/uv", "GPU=")
    assert "pip tries, with its own settings" in make("setup", *settings, UV_FAILS="2")
    by_uv, by_pip, _ = calls(installers)
    assert by_uv.partition("--require-hashes")[2] == by_pip.partition("--require-hashes")[2] == " -r constraints.txt"


def test_pip_installs_where_uv_cannot_be_installed(installers, tmp_path):
    """Its environment's Python is a program that always fails."""
    (tmp_path / "tools/bin").mkdir(parents=True)
    (tmp_path / "tools/bin/python").symlink_to("/bin/false")
    printed = make("setup", f"VENV={installers}", f"TOOLS={tmp_path}/tools", "GPU=")
    assert "uv cannot be installed" in printed
    first, _ = calls(installers)
    assert first.startswith("python -m pip install")
    assert first.endswith("--require-hashes -r constraints.txt")


def test_uv_itself_is_compared_with_its_hash(installers, tmp_path):
    make("setup", f"VENV={installers}", f"TOOLS={installers}", f"UV={tmp_path}/none/uv", "GPU=")
    first = calls(installers)[0]
    assert first.endswith(f"--require-hashes -r {installers}/uv.txt")
    assert re.match(r"uv==[\d.]+ \\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n)+$", (installers / "uv.txt").read_text())


def test_a_python_that_does_not_run_is_not_taken(tmp_path, monkeypatch):
    """pyenv's shims are such files, where their version is not chosen."""
    for folder, works in (("shims", False), ("versions/3.99.1/bin", True)):
        python = tmp_path / folder / "python3.99"
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\n" + ("echo 3.99\n" if works else "exit 127\n"))
        python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/shims:{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "nowhere"))
    assert wheel_check.find_python("3.99") is None
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert wheel_check.find_python("3.99") == python


@pytest.mark.parametrize(("code", "fails"), [(0, False), (1, False), (2, True), (70, True)])
def test_radiographs_that_were_set_aside_are_no_error_of_make_detect(tmp_path, code, fails):
    program = tmp_path / "bin/keras-pneumo"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    (tmp_path / ".ready").touch()
    options = (f"VENV={tmp_path}", "DETECTOR=some", "DATA=radiographs", "OUT=answers")
    if fails:
        with pytest.raises(AssertionError, match=f"Error {code}"):
            make("detect", *options)
    else:
        make("detect", *options)
