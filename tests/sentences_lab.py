"""Collects each sentence that a user can see on a fault from the source, into ``tests/sentences.csv``.

``python tests/sentences_lab.py`` writes the table; ``test_sentences.py`` compares it with the source, so that a new or
changed sentence is read as text by somebody before it is kept. A value that is put in stands as ``{expression}``, and
one of two texts as ``{either|or}``. The columns:

- ``file`` and ``function``: where the sentence stands;
- ``kind``: ``refusal``, ``stop``, ``fault`` (the command ends), ``reason`` (why a file or row was set aside: a part of
  a sentence), ``note`` (the command goes on), ``setting`` (what is wrong with a setting: a part), ``advice`` (of
  doctor), ``page`` (an answer of the local page);
- ``sentence``;
- ``when``: the condition around it, or the error that it comes from: how it is provoked;
- ``test``: a test with a text that holds words of it which no other sentence has; blank where no test does.
"""

import ast
import csv
import functools
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "keras_pneumo"
TABLE = TESTS / "sentences.csv"

PARTS = {"UnreadableImage", "UnusableSource", "RleError"}
"""Errors whose message is a part of a sentence: it stands after a file's name."""

NOTES = re.compile(r"^(warn|notify|remark)$")
NOTE_FUNCTIONS = re.compile(r"(^|_)(notes?|warnings?|cautions?|remarks?)($|_of$)")
REASON_FUNCTIONS = re.compile(r"(fault|reason|refusal|why|bad_id|cut_short|unusable)")
REASON_NAMES = re.compile(r"^(reason|FILE_FAILED|grey_note|other_view)$")
PAGE_CONSTANTS = ("BUSY", "NO_TOKEN")
VALIDATED = ("keras_pneumo/config.py", "keras_pneumo/evaluation/inputs/submission.py")
"""Modules whose ValueErrors become parts of a refusal, by pydantic."""

HANDED_IN = "keras_pneumo/evaluation/inputs/"
"""Where the faults of a submission are collected: each is a ``sentence`` that becomes a ``Fault``."""

NOT_FAULTS = ("keras_pneumo/parity/remarks.py", "keras_pneumo/parity/run.py")
"""Modules whose notes are no faults: what a check of the ladder says, and its progress."""


class Sentence(NamedTuple):
    """One row of the table."""

    file: str
    function: str
    kind: str
    sentence: str
    when: str
    test: str = ""

    @property
    def text(self) -> tuple[str, str, str]:
        """What the table is compared by: a row stays when only the code around it changes."""
        return self.file, self.kind, self.sentence


@functools.cache
def parsed(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    return tree


@functools.cache
def modules() -> tuple[Path, ...]:
    return tuple(sorted(PACKAGE.rglob("*.py")))


@functools.cache
def constants() -> dict[str, str]:
    """Texts that modules of the package give a name to, where one name means one text."""
    found: dict[str, set[str]] = {}
    for path in modules():
        for node in parsed(path).body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(targets[0], ast.Name) and isinstance(value, ast.Constant | ast.JoinedStr | ast.BinOp):
                text = template(value, {})
                if text is not None:
                    found.setdefault(targets[0].id, set()).add(text)
    return {name: texts.pop() for name, texts in found.items() if len(texts) == 1}


@functools.cache
def errors() -> frozenset[str]:
    """The project's own errors: :class:`PneumoError` and what derives from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    }
    known = {"PneumoError"}
    while more := {name for name, of in bases.items() if of & known} - known:
        known |= more
    return frozenset(known)


def template(node: ast.expr | None, names: dict[str, str] | None = None) -> str | None:
    """A text with its placeholders; None where there is no text in it."""
    names = constants() if names is None else names
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value, names) or "" for value in values)
        case ast.FormattedValue(value=value):
            inner = template(value, names) if isinstance(value, ast.IfExp | ast.Name) else None
            return inner or "{" + ast.unparse(value) + "}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [template(left, names), template(right, names)]
            if parts == [None, None]:
                return None
            return "".join(part or "{" + ast.unparse(of) + "}" for part, of in zip(parts, (left, right), strict=True))
        case ast.IfExp(body=body, orelse=other):
            texts = [template(body, names), template(other, names)]
            if texts == [None, None]:
                return None
            shown = [
                part if part is not None else "{" + ast.unparse(of) + "}"
                for part, of in zip(texts, (body, other), strict=True)
            ]
            return "{" + "|".join(shown) + "}"
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Call(func=ast.Attribute(value=value, attr="replace" | "strip" | "format")):
            return template(value, names)
    return None


def texts_of(node: ast.expr | None) -> Iterator[str]:
    """The texts in an expression; both of two at its top."""
    if isinstance(node, ast.IfExp):
        yield from texts_of(node.body)
        yield from texts_of(node.orelse)
        return
    if isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from texts_of(element.value if isinstance(element, ast.Starred) else element)
        return
    text = template(node)
    if text and re.search(r"[A-Za-z]{2}.* ", re.sub(r"\{[^{}]*\}", " ", text)):
        yield " ".join(text.split())


def name_of(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def around(node: ast.AST) -> tuple[str, str]:
    """The function in which a node stands, and the condition or error next around it."""
    when, function, child = "", "", node
    at: ast.AST | None = getattr(node, "parent", None)
    while at is not None and not function:
        if isinstance(at, ast.FunctionDef | ast.AsyncFunctionDef):
            function = at.name
        elif not when and isinstance(at, ast.If | ast.IfExp):
            condition = ast.unparse(at.test)
            inside = at.body if isinstance(at.body, list) else [at.body]
            when = condition if any(child is each for each in inside) or child is at.test else f"not ({condition})"
        elif not when and isinstance(at, ast.ExceptHandler):
            when = f"except {ast.unparse(at.type) if at.type else ''}"
        child, at = at, getattr(at, "parent", None)
    return function, " ".join(when.split())[:120]


def kinds_of(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Each expression in a node that is a user's sentence, with its kind."""
    if isinstance(node, ast.Call):
        name = name_of(node.func)
        if name in errors() and node.args:
            kind = {"Stopped": "stop", "ChildFailed": "fault"}.get(name, "reason" if name in PARTS else "refusal")
            yield kind, node.args[0]
        elif NOTES.match(name) and node.args:
            yield "note", node.args[0]
        elif name == "Fault" and node.args:
            yield "handed in", node.args[0]
        elif name == "Rejected" and len(node.args) > 2:
            yield "reason", node.args[2]
        elif name == "_refused" and node.args:
            yield "page", node.args[0]
        elif name == "MachineCheck":
            for text in [*node.args[2:], *(keyword.value for keyword in node.keywords)]:
                yield "advice", text
        elif name == "append" and node.args and NOTE_FUNCTIONS.search(name_of(getattr(node.func, "value", node.func))):
            yield "note", node.args[0]
        if name not in ("Rejected", "MachineCheck"):
            for keyword in node.keywords:
                if keyword.arg and REASON_NAMES.match(keyword.arg):
                    yield "reason", keyword.value
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and name_of(node.exc.func) == "ValueError":
        if node.exc.args:
            yield "setting", node.exc.args[0]
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        if REASON_NAMES.match(node.targets[0].id):
            yield "reason", node.value
        elif node.targets[0].id == "sentence":
            yield "handed in", node.value
        elif node.targets[0].id in PAGE_CONSTANTS:
            yield "page", node.value
    elif isinstance(node, ast.Return | ast.Yield) and node.value is not None:
        function = around(node)[0]
        if REASON_FUNCTIONS.search(function) and not NOTE_FUNCTIONS.search(function):
            yield "page" if function == "refusal" else "reason", node.value
        elif NOTE_FUNCTIONS.search(function):
            yield "note", node.value


def of_python(path: Path) -> Iterator[Sentence]:
    file = path.relative_to(PACKAGE.parent).as_posix()
    for node in ast.walk(parsed(path)):
        for kind, expression in kinds_of(node):
            if kind == "note" and file in NOT_FAULTS:
                continue
            function, when = around(node)
            if kind == "handed in":
                if not file.startswith(HANDED_IN):
                    continue
                kind = "refusal"
            if kind == "setting" and file not in VALIDATED:
                kind = "reason"
            for text in texts_of(expression):
                part = kind == "refusal" and text[0].islower()  # its caller begins the sentence
                yield Sentence(file, function, "reason" if part else kind, text, when)


def of_javascript(path: Path) -> Iterator[Sentence]:
    """Errors of the page: ``new Error("...")``, and what ``showError`` is given as text."""
    file = path.relative_to(PACKAGE.parent).as_posix()
    calls = r"(new Error|showError|error:)\(?(?:json\.error \?\?)?\s*[`\"]([^`\"]+)[`\"]"
    for call, text in re.findall(calls, path.read_text(encoding="utf-8")):
        yield Sentence(file, "", "page", text.replace("${", "{"), call)


SUCCESSIVE = 4
"""Words of a sentence that a test must hold one after the other, and that are in no other sentence."""


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Each :data:`SUCCESSIVE` words of a text that follow each other; none reaches over a placeholder."""
    pieces = [[word.strip(".,:;()'\"") for word in piece.split()] for piece in re.split(r"\{[^{}]*\}", text)]
    return {
        tuple(words[start : start + SUCCESSIVE]) for words in pieces for start in range(len(words) - SUCCESSIVE + 1)
    }


@functools.cache
def tested() -> list[tuple[set[tuple[str, ...]], str]]:
    """The word runs of each text in a test (regular expressions without their backslashes), with the test's name."""
    texts = []
    for path in sorted(TESTS.rglob("test_*.py")):
        if path.name == "test_sentences.py":
            continue
        for function in ast.walk(parsed(path)):
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                place = f"{path.relative_to(TESTS).as_posix()}::{function.name}"
                for node in ast.walk(function):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str) and not is_docstring(node):
                        text = re.sub(r"\.\*|\.\+|\\S\+|\\d\+?", "{}", node.value).replace("\\", "")
                        texts.append((word_runs(text), place))
    return [(runs, place) for runs, place in texts if runs]


def is_docstring(node: ast.AST) -> bool:
    return isinstance(getattr(node, "parent", None), ast.Expr)


def named_tests(sentences: Collection[str]) -> dict[str, str]:
    """For each sentence the test that holds most of the words that are in no other sentence; blank where none does."""
    owners: dict[tuple[str, ...], set[str]] = {}
    for sentence in sentences:
        for run in word_runs(sentence):
            owners.setdefault(run, set()).add(sentence)
    counts: dict[str, dict[str, int]] = {sentence: {} for sentence in sentences}
    for runs, place in tested():
        for run in runs:
            if len(owners.get(run, ())) == 1:
                (sentence,) = owners[run]
                counts[sentence][place] = counts[sentence].get(place, 0) + 1
    return {sentence: max(sorted(of), key=of.__getitem__) if of else "" for sentence, of in counts.items()}


def collect(with_tests: bool = False) -> list[Sentence]:
    """Every sentence of the package, sorted; each once in a function."""
    found = {sentence for path in modules() for sentence in of_python(path)}
    found |= {sentence for path in sorted(PACKAGE.rglob("*.js")) for sentence in of_javascript(path)}
    once = {(sentence.text, sentence.function): sentence for sentence in sorted(found, reverse=True)}
    rows = sorted(once.values())
    if not with_tests:
        return rows
    tests = named_tests({row.sentence for row in rows})
    return [row._replace(test=tests[row.sentence]) for row in rows]


def read() -> list[Sentence]:
    """The table as it stands."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Sentence(*row) for row in list(csv.reader(file))[1:]]


def write() -> int:
    rows = collect(with_tests=True)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Sentence._fields)
        writer.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    print(f"{TABLE}: {write()} sentences. Read those that are new.")
