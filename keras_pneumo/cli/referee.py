"""The referee's commands: submission-template, check-submission, compare, audit-split.

They need neither TensorFlow nor Keras.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import measure_renderables
from rich.table import Table

from keras_pneumo.cli.console import out, say, warn
from keras_pneumo.cli.workers import DataOption, data_of, one_of, run_folder
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import counted

ROOMY = Console(width=10_000).options


def submission_folder(name: str) -> Path:
    """The folder of submissions, or of a run; a package that was received is refused where it has no predictions.

    Raises:
        PneumoError: it has none, or as :func:`run_folder`.
    """
    from keras_pneumo.sharing.hub import is_received
    from keras_pneumo.sharing.package import SUBMISSION

    folder = run_folder(name)
    if is_received(folder) and not (folder / SUBMISSION).is_dir():
        raise PneumoError(f"{name} has no predictions. Get one that was made --with-predictions.")
    return folder


Task = Literal["classification", "segmentation", "joint"]

SubmissionArgument = Annotated[
    Path, typer.Argument(parser=submission_folder, help="A submission, a run, or a folder of several.")
]
TruthOption = Annotated[Path, typer.Option(help="A prepared folder, its truth.csv, or a SIIM label csv.")]
SubsetOption = Annotated[str, typer.Option(help="Which patients are scored.")]
IdsOption = Annotated[Path | None, typer.Option(help="Csv of the image ids to score, for a label csv as truth.")]
MissingOption = Annotated[bool, typer.Option(help="Count images without a prediction as 'no'.")]
ExtraOption = Annotated[bool, typer.Option(help="Leave out rows of images that are not scored, and rows given twice.")]
ClipOption = Annotated[bool, typer.Option(help="Cut masks that end past the last pixel.")]


def submission_template_command(
    truth: TruthOption,
    out_folder: Annotated[Path, typer.Option("--out", help="The submission to fill in: a new or an empty folder.")],
    task: Annotated[
        Task | None, typer.Option(help="What the team answers. Default: joint, or classification without true masks.")
    ] = None,
    subset: Annotated[str, typer.Option(help="Which patients are predicted.")] = "test",
    validation: Annotated[
        bool, typer.Option(help="Also write validation.csv, which the threshold is fitted on.")
    ] = False,
    ids: Annotated[Path | None, typer.Option(help="Csv of the image ids to predict, for a label csv as truth.")] = None,
) -> None:
    """Write a submission to fill in: the ids to predict, and a plain placeholder for each thing that is missing.

    Example: `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo prepare data/phantom-try --out data/prepared-hand-in --size 64 &&
    keras-pneumo submission-template --truth data/prepared-hand-in --out submissions/our_team`
    """
    from keras_pneumo.evaluation.inputs.submission import INFO_FILE, PLACEHOLDER, PREDICTIONS_FILE, write_template
    from keras_pneumo.evaluation.inputs.truth import read_truth

    scored = read_truth(truth, subset, ids)
    if scored.runs is None and task in ("segmentation", "joint"):
        raise PneumoError(f"{truth} has no masks, so no mask can be scored. Use --task classification.")
    validation_ids = scored.development[scored.development.subset == "validation"].image_id.tolist()
    if validation and not validation_ids:
        raise PneumoError(f"{truth} has no validation images beside {scored.subset_name}. Leave --validation out.")
    write_template(
        out_folder,
        scored.cases.image_id.tolist(),
        task or ("classification" if scored.runs is None else "joint"),
        "test" if scored.subset == "all" else scored.subset,
        scored.split_sha256,
        scored.synthetic,
        validation_ids if validation else [],
    )
    say(f"{counted(len(scored.cases), 'image')} of {scored.subset_name}: {out_folder / PREDICTIONS_FILE}")
    say(f"Write the predictions there, and who you are into {INFO_FILE}, in place of each {PLACEHOLDER}. Then:")
    say(f"keras-pneumo check-submission {out_folder} --truth {truth}")


def check_submission_command(
    submission: SubmissionArgument,
    truth: TruthOption,
    subset: SubsetOption = "test",
    ids: IdsOption = None,
    allow_missing: MissingOption = False,
    allow_extra: ExtraOption = False,
    clip_runs: ClipOption = False,
    rows: Annotated[Path | None, typer.Option(help="Csv to write, with a line for every wrong row.")] = None,
) -> None:
    """Check a submission as `compare` reads it, score nothing, and name all its faults at once, by file and row.

    Ends with 2 where `compare` would refuse it.

    Example, after training: `keras-pneumo check-submission runs/smallest_classifier --truth data/prepared/phantom-try`
    """
    from keras_pneumo.evaluation.board.entries import team_entry
    from keras_pneumo.evaluation.compare import check_submissions
    from keras_pneumo.evaluation.inputs.submission import write_faults
    from keras_pneumo.evaluation.inputs.truth import read_truth

    scored = read_truth(truth, subset, ids)
    checked, faults = check_submissions(submission, scored, allow_missing, allow_extra, clip_runs)
    if rows is not None:
        write_faults(rows, faults)
    if faults:
        where = f"\nEvery wrong row: {rows}" if rows is not None else ""
        raise PneumoError("\n".join(map(str, faults)) + where)
    for one in checked:
        images = f"{counted(len(scored.cases), 'image')} of {scored.subset_name}"
        entry = team_entry(one.info.team, "", one, scored)
        source = entry.threshold_source.removeprefix("0.5, ")
        threshold = "" if entry.threshold is None else f" Threshold {entry.threshold:.3g} ({source})."
        say(f"{one.info.team}: {one.info.task}, {images}. No fault.{threshold}")
        for note in entry.notes:
            warn(f"{one.info.team}: {note}")


def compare_command(
    submissions: SubmissionArgument,
    truth: TruthOption,
    out_folder: Annotated[Path, typer.Option("--out", help="Where board.csv, per_image.csv and report.html go.")],
    subset: SubsetOption = "test",
    ids: IdsOption = None,
    patients: Annotated[Path | None, typer.Option(help="Patient table, for a label csv as truth.")] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="Table about the images; each column becomes a baseline.")
    ] = None,
    adjudicated: Annotated[Path | None, typer.Option(help="Adjudicated labels, for the accuracy ceiling.")] = None,
    this_split: Annotated[bool, typer.Option(help="Leave out submissions made on another split.")] = False,
    allow_missing: MissingOption = False,
    allow_extra: ExtraOption = False,
    clip_runs: ClipOption = False,
    team: Annotated[str | None, typer.Option(help="Score only this team's submission.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Number of resamples of the patients.")] = 10_000,
) -> None:
    """Score submissions of any framework by patient, beside metadata-only baselines.

    Example, after training: `keras-pneumo compare runs/smallest_classifier --truth data/prepared/phantom-try
    --out runs/compare-try`
    """
    from keras_pneumo.evaluation.board.findings import terminal_rows
    from keras_pneumo.evaluation.board.verdict import verdict
    from keras_pneumo.evaluation.compare import compare

    board, findings = compare(
        submissions,
        truth,
        out_folder,
        subset=subset,
        ids=ids,
        patients=patients,
        allow_missing=allow_missing,
        allow_extra=allow_extra,
        clip_runs=clip_runs,
        team=team,
        seed=seed,
        resamples=resamples,
        metadata=metadata,
        adjudicated=adjudicated,
        this_split=this_split,
    )
    show_board(*terminal_rows(board, findings), str(out_folder / "board.csv"))
    result = verdict(board)
    say(result.headline)
    for sentence in result.sentences:
        say(sentence)
    for warning in result.warnings:
        warn(warning)
    say(str(out_folder / "report.html"))


def show_board(names: list[str], rows: list[list[str]], whole: str) -> None:
    """Print the board, then the notes by team; names from submissions are escaped.

    On a terminal it is as wide as the window: the scores are given from the most important one on, as many as fit, and
    a line says which are left out and that ``whole`` has them. On a pipe, every score is in one line for each team.

    Args:
        names: of the columns: rank, team, scores, notes.
        rows: the same of each entry; a score's interval is in brackets.
        whole: the file with all scores.
    """
    count = len(names) - 3
    if out.is_terminal:
        while count > 1 and _width(_board_table(names, rows, count, out.width)) > out.width:
            count -= 1
        out.print(_board_table(names, rows, count, out.width), highlight=False, crop=False)
        if left_out := names[2 + count : -1]:
            say(f"No room in this window for {', '.join(left_out)}: see {whole}.")
    else:
        table = _board_table(names, rows, count, None)
        Console(file=out.file, width=max(out.width, _width(table))).print(table, highlight=False, crop=False)
    for _, team, *_, notes in rows:
        if notes:
            say(f"{team}: {notes}")


def _board_table(names: list[str], rows: list[list[str]], scores: int, width: int | None) -> Table:
    """The board with its first scores; for a window of ``width`` columns with each interval below its value."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    if width is None:
        for name in names[:-1]:
            table.add_column(name, no_wrap=True)
        for row in rows:
            table.add_row(*map(escape, row[:-1]))
        return table
    longest = max(len(row[1]) for row in rows)
    table.add_column(names[0])
    table.add_column(names[1], width=min(longest, max(16, width // 4)), overflow="fold")
    for name in names[2 : 2 + scores]:
        table.add_column(name, width=14)  # "0.912 to 0.968"
    for rank, team, *cells in rows:
        table.add_row(rank, escape(team), *(cell.replace(" (", "\n").rstrip(")") for cell in cells[:scores]))
    return table


def _width(table: Table) -> int:
    return measure_renderables(out, ROOMY, [table]).maximum


def audit_split_command(
    table: Annotated[
        Path | None,
        typer.Argument(metavar="SPLIT", help="A prepared folder, its split.csv, or a csv of image and fold."),
    ] = None,
    data: DataOption = None,
    patients: Annotated[Path | None, typer.Option(help="Patient table, where the split has no patients.")] = None,
    labels: Annotated[Path | None, typer.Option(help="SIIM label csv, where the split has no labels.")] = None,
) -> None:
    """Report how many validation images share a patient with training, and the patient-only baseline's score.

    Ends with 1 when patients are shared.

    Example: `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo prepare --data data/phantom-try --out data/prepared-audit --size 64 &&
    keras-pneumo audit-split --data data/prepared-audit`
    """
    split = one_of(data_of(table, data, "SPLIT"))
    from keras_pneumo.evaluation.board.split_audit import audit_split

    audit = audit_split(split, patients, labels)
    say(audit.table.to_string(index=False, float_format="{:.3f}".format))
    say(audit.sentence)
    for note in audit.notes:
        warn(note)
    if audit.leaks:
        raise typer.Exit(1)
