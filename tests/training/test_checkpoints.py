"""Tests of checkpoints: each is complete or absent, and a damaged one is skipped."""

import dataclasses
import errno
import os
import shutil
import subprocess
import threading

import numpy as np
import pytest
from crash_lab import QUICK, save_checkpoint, tiny

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.training import checkpoints
from keras_pneumo.training.checkpoints import Checkpoint, CheckpointWriter, TrainingState, identity, position_of

ARRAYS = {"model.0000": np.arange(6.0).reshape(2, 3), "optimizer.0000": np.array(7, np.int64)}
STATE = {"position": {"epoch": 1}, "note": float("nan")}


def write(run, epoch=1, step=2, **more):
    return save_checkpoint(run, epoch, step, ARRAYS | more, STATE, [])


def test_a_checkpoint_is_restored_as_it_was_saved(tmp_path):
    folder = write(tmp_path)
    checkpoint = checkpoints.latest(tmp_path)
    assert checkpoint.folder == folder == tmp_path / "checkpoints/at_0001_000002"
    assert checkpoint.arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], value)
        assert checkpoint.arrays[name].dtype == value.dtype
    assert checkpoint.state["position"] == {"epoch": 1}
    assert not list(tmp_path.glob("checkpoints/.*"))


def test_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (3, 11, 200):
        write(tmp_path, 0, step)
    write(tmp_path, 1, 0)
    assert [folder.name for folder in checkpoints.folders(tmp_path)] == ["at_0000_000200", "at_0001_000000"]
    checkpoints.keep(tmp_path, 1)
    assert [folder.name for folder in checkpoints.folders(tmp_path)] == ["at_0001_000000"]


def test_row_17_what_a_killed_removal_left_goes_with_the_next(tmp_path):
    half = write(tmp_path, 0, 3)
    write(tmp_path, 0, 11)
    (half / "COMPLETE.json").unlink()
    checkpoints.keep(tmp_path, 1)
    assert [folder.name for folder in checkpoints.folders(tmp_path)] == ["at_0000_000011"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    write(tmp_path)
    write(tmp_path, extra=np.ones(1))
    assert "extra" in checkpoints.latest(tmp_path).arrays


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "kept/best.weights.h5"])
@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_row_17_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path, name, how):
    (tmp_path / "best.weights.h5").write_bytes(b"weights" * 100)
    write(tmp_path, 0, 5)
    last = save_checkpoint(tmp_path, 0, 9, ARRAYS, STATE, ["best.weights.h5"])
    victim = last / name
    content = bytearray(victim.read_bytes())
    victim.unlink()
    if how == "truncated":
        victim.write_bytes(content[:-1])
    elif how == "altered":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    messages = []
    assert checkpoints.latest(tmp_path, messages.append).folder.name == "at_0000_000005"
    assert "at_0000_000009 is passed over" in messages[0]
    if how == "missing":
        assert f"it is not complete ({victim.name}: No such file" in messages[0]
    else:
        assert f"{name} is damaged; its content does not fit its hash" in messages[0]
        assert "not complete" not in messages[0]


def test_a_checkpoint_without_a_valid_marker_is_ignored(tmp_path):
    folder = write(tmp_path)
    messages = []
    (folder / "COMPLETE.json").write_text("{")
    assert checkpoints.latest(tmp_path, messages.append) is None
    assert "COMPLETE.json is damaged" in messages[0]
    (folder / "COMPLETE.json").unlink()
    assert checkpoints.latest(tmp_path, messages.append) is None
    assert "it is not complete (COMPLETE.json" in messages[1]


def test_files_of_the_run_are_restored(tmp_path):
    best = tmp_path / "best.weights.h5"
    best.write_bytes(b"first")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/epoch_001.weights.h5").write_bytes(b"one")
    save_checkpoint(tmp_path, 1, 0, ARRAYS, STATE, ["best.weights.h5", "checkpoints/epoch_001.weights.h5"])
    for path, content in ((best, b"second"), (tmp_path / "checkpoints/epoch_002.weights.h5", b"two")):
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(path)
    (tmp_path / "checkpoints/epoch_001.weights.h5").unlink()
    checkpoints.restore_files(tmp_path, checkpoints.latest(tmp_path), "checkpoints/epoch_*.weights.h5")
    assert best.read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.glob("checkpoints/epoch_*")) == ["epoch_001.weights.h5"]


@pytest.mark.parametrize("call", range(6))
def test_row_18_a_full_disk_at_any_write_leaves_the_one_before_and_names_the_folder(tmp_path, monkeypatch, call):
    write(tmp_path, 0, 1)
    flush, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    if call < 3:  # arrays, state, marker
        with pytest.raises(PneumoError, match=f"{tmp_path}/checkpoints: No space left.*The one before it stands"):
            write(tmp_path, 0, 2)
        assert checkpoints.latest(tmp_path).folder.name == "at_0000_000001"
    else:  # flushing folders' names is best effort
        write(tmp_path, 0, 2)
        assert checkpoints.latest(tmp_path).folder.name == "at_0000_000002"
    monkeypatch.undo()
    assert not list(tmp_path.glob("checkpoints/.writing*"))


@pytest.fixture
def held_writing(monkeypatch):
    """Writing waits until this event is set."""
    event, write_file = threading.Event(), checkpoints._write

    def waiting(path, content):
        assert event.wait(30), "the caller waits for the disk"
        return write_file(path, content)

    monkeypatch.setattr(checkpoints, "_write", waiting)
    return event


def test_a_checkpoint_is_written_beside_the_next_steps_and_holds_its_own_moment(tmp_path, held_writing):
    best = tmp_path / "best.weights.h5"
    best.write_bytes(b"then")
    with CheckpointWriter() as writer:
        writer.save(tmp_path, 1, 2, ARRAYS, STATE, [best.name])
        (tmp_path / "new").write_bytes(b"later")
        (tmp_path / "new").replace(best)
        assert checkpoints.latest(tmp_path) is None, "it is not whole yet"
        assert list(tmp_path.glob("checkpoints/.writing_*"))
        held_writing.set()
    beside = checkpoints.latest(tmp_path)
    assert beside.kept[best.name].read_bytes() == b"then"
    at_once = save_checkpoint(tmp_path, 1, 3, ARRAYS, STATE, [])
    for name in ("arrays.safetensors", "state.json"):
        assert (beside.folder / name).read_bytes() == (at_once / name).read_bytes()


def test_one_checkpoint_is_written_at_a_time(tmp_path, held_writing):
    with CheckpointWriter() as writer:
        writer.save(tmp_path, 0, 1, ARRAYS, STATE, [])
        threading.Timer(0.2, held_writing.set).start()
        writer.save(tmp_path, 0, 2, ARRAYS, STATE, [])
        assert (tmp_path / "checkpoints/at_0000_000001/COMPLETE.json").is_file()
    assert [folder.name[-1] for folder in checkpoints.folders(tmp_path)] == ["1", "2"]


def test_a_fault_of_the_disk_ends_the_training_at_the_next_checkpoint_or_at_the_end(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(tmp_path, 0, 1)
    monkeypatch.setattr(checkpoints, "_write", full)
    writer = CheckpointWriter()
    writer.save(tmp_path, 0, 2, ARRAYS, STATE, [])
    with pytest.raises(PneumoError, match=r"No space left.*The one before it stands"):
        writer.save(tmp_path, 0, 3, ARRAYS, STATE, [])
    with pytest.raises(PneumoError, match="No space left"), CheckpointWriter() as writer:
        writer.save(tmp_path, 0, 4, ARRAYS, STATE, [])

    def interrupted():
        with CheckpointWriter() as writer:
            writer.save(tmp_path, 0, 5, ARRAYS, STATE, [])
            raise ValueError("another fault")

    with pytest.raises(ValueError, match="another fault"):
        interrupted()
    assert [folder.name for folder in tmp_path.glob("checkpoints/*")] == ["at_0000_000001"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk can be mounted by root only")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_row_18_a_disk_that_fills_up_during_a_save(small_disk):
    write(small_disk, 0, 1)
    with pytest.raises(PneumoError, match=f"{small_disk}/checkpoints: No space left"):
        write(small_disk, 0, 2, large=np.zeros(10**6))
    assert checkpoints.latest(small_disk).folder.name == "at_0000_000001"
    assert not list(small_disk.glob("checkpoints/.writing*"))
    write(small_disk, 0, 3)
    assert checkpoints.latest(small_disk).folder.name == "at_0000_000003"


@pytest.mark.parametrize("norm_sum", [12.0, float("nan")])
def test_a_checkpoint_of_an_earlier_version_counts_every_step_of_its_gradients(tmp_path, norm_sum):
    position = dataclasses.asdict(TrainingState(epoch=1, step=2, images=16, norm_sum=norm_sum, norm_images=16))
    position.pop("norm_images")
    state = position_of(Checkpoint(tmp_path, {}, {"position": position}))
    assert (state.norm_sum, state.norm_images) == ((12.0, 16) if norm_sum == 12 else (0.0, 0))


def test_a_checkpoint_knows_its_experiment_but_not_whether_operations_were_deterministic(prepared_folder):
    """So those of earlier versions, which had no such setting, still fit."""
    prepared = load_prepared(prepared_folder)
    first, same, other = (
        identity(experiment, prepared, tiny(QUICK))["experiment"]
        for experiment in (QUICK, QUICK.replace(deterministic=False), QUICK.replace(epochs=3))
    )
    assert first == same != other
