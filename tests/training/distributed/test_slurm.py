"""Tests of the job scripts with an imitation of Slurm: what they start, and when the job is requeued."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[3]
SCRIPTS = REPOSITORY / "experiments/slurm"

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do echo "srun $1" >>"$RECORD"; shift; done
export SLURM_STEP_NUM_TASKS="$TASKS" SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE="$TASKS"
for task in $(seq 0 $((TASKS - 1))); do SLURM_PROCID=$task "$@" >"$RECORD.$task" 2>&1 & tasks+=($!); done
worst=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""


@pytest.fixture
def slurm(tmp_path):
    """Runs a job script in an allocation of so many tasks; gives its exit code and what was called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("srun", SRUN),
        ("scontrol", '#!/bin/sh\necho "scontrol $*" >>"$RECORD"\n'),
        (
            "trainer",
            '#!/bin/sh\necho "train $*" >>"$RECORD"\necho "cores $SRUN_CPUS_PER_TASK" >>"$RECORD"\n'
            '[ -z "$SIGNAL" ] || { trap "exit 75" $SIGNAL; kill -$SIGNAL $PPID $$; exit 1; }\n'
            '[ "$CODE" = kill ] && [ "$SLURM_PROCID" = 1 ] && kill -9 $PPID\n'
            "set -- ${CODE:-0}\n[ $SLURM_PROCID = 1 ] && [ $# = 2 ] && shift\n[ $1 = kill ] && exit 75\nexit $1\n",
        ),
        ("apptainer", '#!/bin/sh\necho "apptainer $1 $2 $3" >>"$RECORD"\nshift 3\nexec "$@"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(script, *arguments, tasks=1, **environment):
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        result = subprocess.run(
            ["bash", str(SCRIPTS / script), *map(str, arguments)],
            capture_output=True, text=True, cwd=REPOSITORY,
            env={
                **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record), "TASKS": str(tasks),
                "SLURM_JOB_ID": str(os.getpid()), "SLURM_SUBMIT_DIR": str(REPOSITORY), "KERAS_PNEUMO": "trainer",
                **environment,
            },
        )  # fmt: skip
        return result, record.read_text() if record.exists() else ""

    return run


@pytest.mark.parametrize("script", ["one_node.sbatch", "several_nodes.sbatch"])
@pytest.mark.parametrize(
    ("code", "restarts", "again"), [("75", "0", True), ("75", "20", False), ("2", "0", False), ("0", "0", False)]
)
def test_a_job_goes_back_into_the_queue_only_when_it_was_saved(slurm, script, code, restarts, again):
    result, called = slurm(script, "experiments/x.py", "prepared", CODE=code, SLURM_RESTART_COUNT=restarts)
    assert result.returncode == int(code)
    assert ("scontrol requeue" in called) is again
    assert "train train experiments/x.py --data prepared --out runs/x-slurm --strategy auto" in called


@pytest.mark.parametrize(
    ("codes", "ends", "again"),
    [
        ("2 75", 2, False),  # the chief refuses; the worker that it ended must not bring the job back
        ("75 2", 2, False),
        ("130 75", 130, False),
        ("75 138", 138, True),  # a signal that came before the worker listened
        ("0 75", 75, True),
        ("kill", 137, True),  # worker 1 is killed and can write nothing down
        ("0", 0, False),
    ],
)
def test_a_refusal_of_one_task_counts_and_a_killed_one_comes_back(slurm, tmp_path, codes, ends, again):
    out = tmp_path / "runs/x"
    result, called = slurm("several_nodes.sbatch", "x.py", "prepared", out, tasks=2, CODE=codes)
    assert result.returncode == ends
    assert ("scontrol requeue" in called) is again
    assert not list((tmp_path / "runs").iterdir()), "nothing is left behind"


def test_options_of_train_follow_the_run_folder(slurm):
    options = ["--set", "learning_rate=3e-4", "--weights", "a file.pt"]
    _, called = slurm("several_nodes.sbatch", "x.py", "prepared", "out", *options, tasks=2)
    assert called.count(f"--out out --strategy auto {' '.join(options)}\n") == 2


def test_each_task_has_the_cores_that_the_job_asked_for(slurm):
    _, called = slurm("one_node.sbatch", "x.py", "prepared", SLURM_CPUS_PER_TASK="32")
    assert "cores 32" in called


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_reaches_the_training_and_its_code_is_kept(slurm, name):
    """Slurm signals every process of a task, the shell around the training too."""
    result, called = slurm("one_node.sbatch", "x.py", "prepared", SIGNAL=name)
    assert result.returncode == 75
    assert "scontrol requeue" in called


def test_a_container_and_options_for_srun(slurm):
    environment = {"KERAS_PNEUMO_CONTAINER": "image.sif", "KERAS_PNEUMO_SRUN": "--container-image=a --x=b"}
    _, called = slurm("several_nodes.sbatch", "x.py", "prepared", "out", tasks=2, **environment)
    assert "srun --container-image=a\nsrun --x=b\n" in called
    assert called.count("apptainer exec --nv image.sif") == 2
    assert called.count("train train x.py --data prepared --out out") == 2


def test_a_missing_argument_is_named(slurm):
    result, _ = slurm("one_node.sbatch", "x.py")
    assert result.returncode != 0
    assert "a prepared folder" in result.stderr


@pytest.mark.slow
def test_two_tasks_train_and_write_one_report(slurm, tmp_path, prepared_folder):
    """The whole command line on two workers, found through Slurm's variables by TensorFlow's resolver."""
    program = tmp_path / "keras-pneumo"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m keras_pneumo "$@"\n')
    program.chmod(0o755)
    result, _ = slurm(
        "several_nodes.sbatch", "experiments/smallest_classifier.py", prepared_folder, tmp_path / "run",
        tasks=2, KERAS_PNEUMO=str(program), PYTHONPATH=str(REPOSITORY),
    )  # fmt: skip
    outputs = [(tmp_path / f"record.{task}").read_text() for task in range(2)]
    assert result.returncode == 0, outputs[0][-3000:] + outputs[1][-3000:]
    assert "2 workers of Slurm's variables" in outputs[0]
    assert str(tmp_path / "run/report.html") in outputs[0]
    assert "report.html" not in outputs[1], "the chief alone writes"
    assert len(pd.read_csv(tmp_path / "run/log.csv")) == 2


@pytest.mark.slow
def test_a_chief_that_refuses_ends_the_job_with_its_code(slurm, tmp_path, prepared_folder):
    """Not with the higher code of the worker that it ended, because Slurm would then requeue the job."""
    program = tmp_path / "keras-pneumo"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m keras_pneumo "$@"\n')
    program.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("kept")
    result, called = slurm(
        "several_nodes.sbatch", "experiments/smallest_classifier.py", prepared_folder, tmp_path / "run",
        tasks=2, KERAS_PNEUMO=str(program), PYTHONPATH=str(REPOSITORY),
    )  # fmt: skip
    outputs = [" ".join((tmp_path / f"record.{task}").read_text().split()) for task in range(2)]
    assert result.returncode == 2, outputs[0][-3000:] + outputs[1][-3000:]
    assert "requeue" not in called
    assert "is not empty" in outputs[0]
    assert "has lost another worker" in outputs[1]
    assert "Traceback" not in outputs[0] + outputs[1]
    assert (tmp_path / "run/mine.txt").read_text() == "kept"
