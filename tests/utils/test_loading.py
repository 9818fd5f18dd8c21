"""What the DataLoaders share: errors as items, and workers that end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from utils.files import try_lock
from utils.loading import ErrorsAsItems

ROOT = Path(__file__).parents[2]
WAIT_S = 20
PARENT = """
import fcntl, multiprocessing, sys, time
import numpy as np
from torch.utils.data import DataLoader
from utils.loading import ErrorsAsItems, follow_parent

def load(item):
    return np.zeros(2**20)  # more than a pipe takes: the worker waits in its write

lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
loader = DataLoader(ErrorsAsItems(range(9), load), num_workers=2, collate_fn=list, worker_init_fn=follow_parent)
batches = iter(loader)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def _half(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    if number < 0:
        raise KeyError(number)
    return number // 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_value_error_comes_out_as_an_item_and_others_are_raised(num_workers):
    loader = DataLoader(ErrorsAsItems([4, 5, 6], _half), num_workers=num_workers, batch_size=None)
    first, error, last = loader
    assert (first, last, str(error)) == (2, 3, "5 is odd")
    assert type(error) is ValueError
    with pytest.raises(KeyError):
        ErrorsAsItems([-2], _half)[0]


@pytest.fixture
def parent(tmp_path):
    """A process with two workers that holds a lock, and the workers' ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "lock")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    yield process, workers
    process.kill()
    process.wait()
    process.stdout.close()
    for worker in filter(_is_alive, workers):
        os.kill(worker, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent's notice does not."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _comes_true(condition) -> bool:
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent_and_leave_its_lock(parent, tmp_path, how):
    process, workers = parent
    assert len(workers) == 2
    assert all(map(_is_alive, workers))
    process.send_signal(how)
    process.wait()
    assert _comes_true(lambda: not any(map(_is_alive, workers)))
    with (tmp_path / "lock").open("a") as lock:
        assert _comes_true(lambda: try_lock(lock))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_leave_ctrl_c_to_their_parent(parent):
    _, workers = parent
    assert _comes_true(  # the second worker may still be starting
        lambda: all(_signals_ignored(worker) >> (signal.SIGINT - 1) & 1 for worker in workers)
    )


def _signals_ignored(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("SigIgn:")), 16)
