"""What MkDocs does beside its own work: brings in the pages that lie outside of ``docs``, and checks the built site.

- README, the results, changes and security are the checkout's own files; links in them are turned to the site's pages.
- ``reference.md`` names all that ``import keras_pneumo as kp`` gives; ``commands.md`` is written before, by
  ``docs/site/commands.py``, since it needs the program's environment.
- The page for addresses that do not exist, ``404.html``, finds the site from any address, and from the disk.
- The built site must hold no dead link or anchor, and nothing that a browser would fetch from the network.
"""

from __future__ import annotations

import ast
import html.parser
import posixpath
import re
import urllib.parse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = "https://github.com/keras-pneumo/keras-pneumo"
COMMANDS = ROOT / "build/commands.md"

PAGES = {
    "README.md": "index.md",
    "experiments/README.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Files of the checkout that are pages of the site under another name."""

RESULTS = {
    "Radiograph": "data.radiographs.radiograph.Radiograph",
    "Scores": "evaluation.compare.Scores",
    "Score": "evaluation.compare.Score",
    "Comparison": "evaluation.compare.Comparison",
    "Evaluation": "detector.external.Evaluation",
    "Detector": "detector.detector.Detector",
    "Prediction": "detector.detector.Prediction",
}
"""What the functions of the front door return, without a name of its own there."""

CHAIN = re.compile(r"^\[README\]\(\.\./README\.md\) \|.*?\n\n", re.MULTILINE | re.DOTALL)
"""The line of links below a page's title, for readers of the checkout; the site has its own."""

LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside of ``docs``, the pages that are made, and the notebooks."""
    from mkdocs.structure.files import File

    if not COMMANDS.is_file():
        raise FileNotFoundError(f"There is no {COMMANDS}. Build the site by make docs, which writes it.")
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "commands.md", content=COMMANDS.read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference.md", content=python_reference()))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.name}", abs_src_path=str(notebook)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page as the site shows it."""
    sources = {name: source for source, name in PAGES.items()}
    return for_the_site(markdown, sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))


def on_config(config: Any) -> Any:
    """Take out the script from another host by which the offline plugin lets a search run from the disk."""
    config.extra["polyfills"] = [SEARCH_SCRIPT] if config.extra.pop("polyfills", None) else []
    return config


def on_post_build(config: Any) -> None:
    """Write the search's script for the disk, then check the whole site.

    Raises:
        RuntimeError: a link, anchor or resource is wrong; the message names each.
    """
    site = Path(config.site_dir)
    write_search_script(site)
    faults = faults_of_site(site)
    if faults:
        raise RuntimeError("The site has dead links or asks something of the network:\n" + "\n".join(faults))


def for_the_site(markdown: str, source: str) -> str:
    """A page's text with its links turned to the site's pages, and those to other files to the project's home.

    Args:
        markdown: the text.
        source: where it lies in the checkout, such as ``docs/data.md``.
    """
    parts = FENCE.split(CHAIN.sub("", markdown, count=1))
    return "".join(part if part.startswith("```") else _relinked(part, source) for part in parts)


def _relinked(text: str, source: str) -> str:
    folder = posixpath.dirname(source)

    def relink(match: re.Match[str]) -> str:
        label, target = match.groups()
        path, mark, anchor = target.partition("#")
        if re.match(r"\w+:", target) or not path:
            return match.group()
        there = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / there).exists():
            return match.group()  # MkDocs names it as a dead link
        if there in PAGES:
            there = PAGES[there]
        elif there.startswith("docs/") and (ROOT / there).is_file():
            there = there.removeprefix("docs/")
        elif not there.startswith("notebooks/"):
            there = f"{HOME}/blob/main/{there}"
        return f"{label}({there}{mark}{anchor})"

    return LINK.sub(relink, text)


def python_reference() -> str:
    """The page of all names of ``keras_pneumo.__all__``, and of what they return."""
    tree = ast.parse((ROOT / "keras_pneumo/__init__.py").read_text(encoding="utf-8"))
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("__all__", "_MODULES"):
                values[name] = ast.literal_eval(node.value)
    lines = [
        "# Python",
        "",
        "`import keras_pneumo as kp` gives these names. How they work together: [from a notebook](python.md).",
    ]
    for name in values["__all__"]:
        path = f"keras_pneumo.{values['_MODULES'].get(name, 'api')}.{name}"
        lines += ["", f"## kp.{name}", "", f"::: {path}", "    options:", "      show_root_heading: false"]
        lines += ["      show_root_toc_entry: false"]
        lines += ["      show_if_no_docstring: true"] if name in ("Experiment", "Augmentation") else []  # every setting
    lines += ["", "## What they return", ""]
    for name, path in RESULTS.items():
        lines += [f"### {name}", "", f"::: keras_pneumo.{path}", "    options:", "      show_root_heading: false"]
        lines += ["      show_root_toc_entry: false", "      heading_level: 4", ""]
    return "\n".join(lines) + "\n"


# -- The page for addresses that do not exist --------------------------------------------------------------------------

FIND_SITE = """<script>
// This page answers for any address below the site, whose own folder is not known before. It is the deepest one
// that has the site's list of names; from there, the page's links, styles and search are right.
if (location.protocol !== "file:" && !location.pathname.endsWith("/404.html")) {
  const steps = location.pathname.split("/").slice(0, -1);
  for (; steps.length; steps.pop()) {
    const folder = steps.join("/") + "/", ask = new XMLHttpRequest();
    ask.open("HEAD", folder + "objects.inv", false);
    ask.send();
    if (ask.status === 200) { history.replaceState(null, "", folder + "404.html"); break; }
  }
}
</script>
"""


def on_post_template(output: str, template_name: str, **_: Any) -> str:
    """Make the addresses in ``404.html`` relative: MkDocs lets them begin at the host, where the site need not lie."""
    if template_name != "404.html":
        return output
    relative = re.sub(r'\b(href|src)="/(?!/)', r'\1="', output)
    relative = re.sub(r'href="\.?"', 'href="index.html"', relative)
    for absolute in ('"base": "/', '"search": "/', 'new URL("/'):  # the theme's own settings
        relative = relative.replace(absolute, absolute[:-1] + "./")
    return relative.replace("<head>", f"<head>\n{FIND_SITE}", 1)


# -- Search from the disk ----------------------------------------------------------------------------------------------

SEARCH_SCRIPT = "site/search_from_disk.js"


def write_search_script(site: Path) -> None:
    """Write the script that lets the search's worker start in a page that was opened from the disk.

    A browser reads no worker from a file there, so the script holds the worker's text and starts it from memory.
    """
    workers = sorted(site.glob("assets/javascripts/workers/search.*.js"))
    if len(workers) != 1:
        raise RuntimeError(f"The theme has {len(workers)} search workers where one was expected. See {site}/assets.")
    text = workers[0].read_text(encoding="utf-8").replace("//# sourceMappingURL=", "// ")
    import json

    inside = json.dumps(text).replace("</", "<\\/")
    script = (
        "// Made by docs/site/hooks.py: the search worker, for pages that were opened from the disk.\n"
        'if (location.protocol === "file:") {\n'
        f"  const text = {inside};\n"
        "  const Plain = window.Worker;\n"
        "  window.Worker = class extends Plain {\n"
        '    constructor() { super(URL.createObjectURL(new Blob([text], {type: "text/javascript"}))); }\n'
        "  };\n"
        "}\n"
    )
    target = site / SEARCH_SCRIPT
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(script, encoding="utf-8")


# -- The check of the built site ---------------------------------------------------------------------------------------


class _Page(html.parser.HTMLParser):
    """The anchors, links and fetched resources of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "manifest"):
            self.fetched.append(values.get("href", ""))
        elif "src" in values:
            self.fetched.append(values["src"])


def faults_of_site(site: Path) -> list[str]:
    """Dead links and anchors, and what a browser would fetch from the network, a line each."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path.resolve()] = page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    faults = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        faults += [f"{name} fetches {target}" for target in page.fetched if re.match(r"(\w+:)?//", target)]
        for target in [*page.links, *page.fetched]:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            anchor = urllib.parse.unquote(parts.fragment)
            if not file.is_file():
                faults.append(f"{name} leads to {target}, which is not there")
            elif anchor and file in pages and anchor not in pages[file].anchors:
                faults.append(f"{name} leads to {target}, whose anchor is not there")
    for path in site.rglob("*.css"):
        targets = re.findall(r"url\([\"']?((?:\w+:)?//[^)\"']+)", path.read_text(encoding="utf-8"))
        faults += [f"{path.relative_to(site)} fetches {target}" for target in targets]
    return faults
