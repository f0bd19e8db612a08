"""Batches are a function of their number, whatever threads do and whoever takes them."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.data.batches import ahead
from keras_pneumo.data.batches.ahead import MOST_AT_ONCE, Ahead, aligned, threads
from keras_pneumo.errors import PneumoError


class Numbered:
    """A batch whose row r of number n is 100 n + r; each row is filled once."""

    def __init__(self, number, rows=5, broken=()):
        self.number, self.broken = number, broken
        self.values = np.zeros(rows, int)

    def __len__(self):
        return len(self.values)

    @property
    def arrays(self):
        return (self.values,)

    def fill(self, first, last):
        if self.number in self.broken:
            raise PneumoError(f"batch {self.number} cannot be read")
        time.sleep(0.0002 * ((self.number + first) % 3))  # so that pieces end in another order than they began in
        self.values[first:last] += 100 * self.number + np.arange(first, last)


def expected(number, rows=5):
    return (100 * number + np.arange(rows)).tolist()


@settings(max_examples=20, deadline=None)
@given(numbers=st.lists(st.integers(0, 30), max_size=30), rows=st.integers(1, 9), cores=st.integers(1, 5))
def test_any_numbers_in_any_order_give_their_batches(numbers, rows, cores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "available_cores", lambda: cores)
        batches = Ahead(lambda number: Numbered(number, rows), rows)
        for number in numbers:
            assert batches.take(number, 31)[0].tolist() == expected(number, rows)


def test_the_next_batches_are_begun_and_none_after_the_last():
    begun = []
    batches = Ahead(lambda number: begun.append(number) or Numbered(number), 5)
    batches.take(0, 3)
    assert begun[:2] == [0, 1]
    for number in (1, 2):
        batches.take(number, 3)
    assert begun == [0, 1, 2]
    batches.take(0)
    assert begun[3:5] == [0, 1], "without an end, too"


def test_a_batch_that_was_taken_is_not_kept():
    """TensorFlow has its memory now: the same number once more is another array."""
    batches = Ahead(Numbered, 5)
    first, again = batches.take(3)[0], batches.take(3)[0]
    assert first is not again
    assert first.tolist() == again.tolist() == expected(3)


def test_what_was_begun_and_not_taken_stays_within_bounds():
    batches = Ahead(Numbered, 5)
    for number in range(0, 4000, 40):  # each jump leaves what was begun before
        batches.take(number)
    assert len(batches._pending) <= MOST_AT_ONCE * batches._ahead


def test_two_that_take_turns_and_two_at_once_get_the_same():
    batches = Ahead(Numbered, 5)
    for number in range(20):
        assert batches.take(number, 20)[0].tolist() == expected(number)
        assert batches.take(19 - number, 20)[0].tolist() == expected(19 - number)
    seen = {}

    def take_all(name):
        seen[name] = [batches.take(number, 20)[0].tolist() for number in range(20)]

    takers = [threading.Thread(target=take_all, args=(name,)) for name in "abc"]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert all(seen[name] == [expected(number) for number in range(20)] for name in "abc")


def test_an_error_comes_with_its_own_batch_and_again_with_it():
    batches = Ahead(lambda number: Numbered(number, broken=(2,)), 5)
    assert batches.take(1, 5)[0].tolist() == expected(1)
    for _ in range(2):
        with pytest.raises(PneumoError, match="batch 2 cannot be read"):
            batches.take(2, 5)
    assert batches.take(3, 5)[0].tolist() == expected(3)


def test_datasets_share_their_threads():
    for _ in range(5):
        batches = Ahead(Numbered, 5)
        batches.take(0)
    assert (
        len([thread for thread in threading.enumerate() if thread.name.startswith("images")]) <= threads()._max_workers
    )


def test_arrays_begin_where_tensorflow_takes_them_over():
    for shape in ((1,), (3, 5, 7, 1), (2, 32, 32, 1)):
        array = aligned(shape)
        assert (array.shape, array.dtype, array.ctypes.data % 64) == (shape, np.float32, 0)
        assert array.flags.c_contiguous


def test_a_program_ends_while_batches_are_in_work():
    code = """
import time, numpy as np
from keras_pneumo.data.batches.ahead import Ahead
class Slow:
    arrays = ()
    def __len__(self): return 8
    def fill(self, first, last): time.sleep(0.05)
Ahead(lambda number: Slow(), 8).take(0)
print("taken")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "taken", "")
