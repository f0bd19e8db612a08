"""Each sentence that a user sees on a fault stands in ``sentences.csv``, is plain, and says what to do."""

import ast
import re

import pytest
from sentences_lab import PACKAGE, TESTS, collect, named_tests, parsed, read, word_runs

ROWS = read()

DOES = (
    "Add|Apply|Bring|Check|Choose|Complete|Convert|Copy|Cut|Delete|Divide|Drop|End|Evaluate|Export|Fetch|Fit|Free|Get|"
    "Give|Go|Install|Join|Leave|Load|Look|Lower|Make|Mend|Name|Open|Predict|Prepare|Put|Raise|Remove|Rename|Run|Save|"
    "Set|Start|Take|Train|Use|Wait|Write"
)
WHAT_TO_DO = re.compile(
    rf"(^|[.;:,?}}] |\b(or|and|then|please) |\. \{{\w+\}} )({DOES})\b"  # an imperative
    r"|\b(must|needs?|please report|Is this the right file|There are: \{)"
    # What is allowed:
    r"|, not \{|; it is \{|\b(is|are) one of \{|; there are \{|only \{.*\} are known|; it has \{|; this split has"
    # Said elsewhere, or no refusal:
    r"|\{(again|hint|mend|advice|sentence|more)\}|[oO]utput (is in \{|says why)|is passed over",
    re.IGNORECASE,
)  # fmt: skip

COMPLETED = {
    "{where} cannot be used. {'; '.join(problems)}.",  # the problems say what is allowed
    "The table of the submission was refused: {reasons}",  # the refusal of a table, with its own sentences
}
"""Refusals whose placeholders say what to do."""

PRIVATE = re.compile(
    r"\b(e\.g|i\.e|etc|cf|resp|dirs?|config|args?|params?|msg|err|info|repr|idx|num|tmp|img|ckpt|cwd|stdin|stdout|stderr|"
    r"traceback|exception|errno|nonetype|nan|regex|instantiate|deserialize|invalid|illegal|abort(ed)?|fatal|failed to|"
    r"unable to|unexpected|occurred|oops|sorry|bad|films?|rungs?|simply|just)\b",
    re.IGNORECASE,
)
"""Abbreviations, words of programmers, and words that blame or say nothing."""

MOST_WORDS = 40
PLACEHOLDER = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")


def words_of(sentence):
    """The text without its placeholders, each of which counts as a word."""
    return PLACEHOLDER.sub("X", sentence)


def ids(rows):
    return [
        pytest.param(row, id=f"{row.file.removeprefix('keras_pneumo/')}-{number}") for number, row in enumerate(rows)
    ]


def of(*kinds):
    return [row for row in ROWS if row.kind in kinds]


def test_the_table_has_every_sentence_as_it_is_in_the_source():
    there, now = ({row.text for row in rows} for rows in (ROWS, collect()))
    new, gone = sorted(now - there), sorted(there - now)
    assert not new + gone, (
        f"Read these, then run `python tests/sentences_lab.py`. New: {new[:5]}. No longer there: {gone[:5]}."
    )
    assert len(now) > 500


def test_a_test_in_the_table_is_there_and_holds_words_of_its_sentence():
    for row in ROWS:
        if row.test:
            file, _, name = row.test.partition("::")
            functions = [node for node in ast.walk(parsed(TESTS / file)) if getattr(node, "name", "") == name]
            assert functions, f"{row.test} is not there: run `python tests/sentences_lab.py`"
            texts = " ".join(" ".join(ast.unparse(node).replace("\\", "").split()) for node in functions)
            first_words = {" ".join(run[:2]) for run in word_runs(row.sentence)}
            assert any(words in texts for words in first_words), row


def test_words_that_several_sentences_share_name_no_test():
    shared, other = (f"{name} is {{{name}}}; it must be at least 1." for name in ("batch_size", "folds"))
    assert named_tests([shared])[shared]
    assert named_tests([shared, other])[shared] == ""


def faults_of(row):
    """What is wrong with the text of a row, in a word each."""
    text, kind = words_of(row.sentence), row.kind
    faults = []
    whole = kind in ("refusal", "stop", "fault", "note", "page")
    if whole and not re.match(r"[A-Z]|\{|--|no threshold|trained on", row.sentence):
        faults.append("it begins with a small letter")
    if kind in ("refusal", "stop", "fault", "page") and not re.search(r"[.?:}'\]]$|\.\)$", row.sentence):
        faults.append("it has no full stop")
    if kind in ("refusal", "fault") and row.sentence not in COMPLETED and not WHAT_TO_DO.search(row.sentence):
        faults.append("it does not say what to do")
    if kind == "stop" and not re.search(r"again|\{sentence\}", row.sentence):
        faults.append("it does not say how to go on")
    if word := PRIVATE.search(text):
        faults.append(f"it says {word.group()!r}")
    if max(len(part.split()) for part in re.split(r"(?<=[.:;?]) ", text)) > MOST_WORDS:
        faults.append("a sentence of it is too long")
    return faults


def test_each_sentence_is_plain_and_says_what_to_do():
    assert {row.text: faults for row in ROWS if (faults := faults_of(row))} == {}


@pytest.mark.parametrize(
    ("kind", "sentence", "fault"),
    [
        ("refusal", "{path} is empty.", "it does not say what to do"),
        ("refusal", "the file is empty. Give another.", "it begins with a small letter"),
        ("refusal", "{path} is empty. Give another", "it has no full stop"),
        ("refusal", "An exception occurred. Check {path}.", "it says 'exception'"),
        ("stop", "It came to an end.", "it does not say how to go on"),
        ("note", "The value is " + "very " * 45 + "large.", "a sentence of it is too long"),
    ],
)
def test_a_sentence_that_is_not_plain_is_found(kind, sentence, fault):
    assert fault in faults_of(ROWS[0]._replace(kind=kind, sentence=sentence))


def test_a_new_sentence_is_found(tmp_path, monkeypatch):
    import sentences_lab

    (tmp_path / "keras_pneumo").mkdir()
    source = "def read(path):\n    if not path:\n        raise PneumoError(f'{path} is new. Read it.')\n"
    (tmp_path / "keras_pneumo/new.py").write_text(source + "class PneumoError(Exception): pass\n")
    monkeypatch.setattr(sentences_lab, "PACKAGE", tmp_path / "keras_pneumo")
    for cached in (sentences_lab.modules, sentences_lab.constants, sentences_lab.errors):
        cached.cache_clear()
    try:
        (row,) = collect()
        assert row[:5] == ("keras_pneumo/new.py", "read", "refusal", "{path} is new. Read it.", "not path")
    finally:
        for cached in (sentences_lab.modules, sentences_lab.constants, sentences_lab.errors):
            cached.cache_clear()
    assert PACKAGE.name == "keras_pneumo"
