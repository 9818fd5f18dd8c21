import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from utils.resources import Stopwatch, peak_memory_mb, reset_peak_memory, sha256_of, shortage_named

ROOT = Path(__file__).resolve().parents[2]
BLOCK_MB = 256


def test_stages_sum_and_count_even_when_they_fail():
    watch = Stopwatch()
    with watch.stage("a"):
        pass
    first = watch.seconds["a"]
    with pytest.raises(KeyError), watch.stage("a"):
        raise KeyError
    with watch.stage("b"):
        pass
    assert list(watch.seconds) == ["a", "b"]
    assert watch.seconds["a"] > first > 0


def test_torch_without_memory_is_a_memory_error():
    with pytest.raises(MemoryError, match="DefaultCPUAllocator"), shortage_named():
        torch.empty(1 << 62, dtype=torch.uint8)


def _killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="kills as Linux does")
def test_a_loader_whose_process_was_killed_is_a_memory_error():
    loader = DataLoader([1, 2, 3], num_workers=1, worker_init_fn=_killed)
    with pytest.raises(MemoryError, match=r"^DataLoader worker .*(killed|exited)"), shortage_named():
        list(loader)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="other"), shortage_named():
        raise RuntimeError("other")


@pytest.mark.skipif(sys.platform == "win32", reason="not measured on Windows")
def test_peak_memory_counts_what_was_given_back():
    before, after, _, _ = _peaks_of_a_new_process()
    assert after - before > 0.9 * BLOCK_MB


@pytest.mark.skipif(sys.platform == "win32", reason="not measured on Windows")
def test_reset_forgets_the_peak_or_says_that_it_cannot():
    before, after, was_reset, at_reset = _peaks_of_a_new_process()
    if was_reset:
        assert before * 0.5 < at_reset < after - 0.5 * BLOCK_MB
    else:
        assert at_reset == after


@pytest.mark.parametrize("clear", ["no_proc/clear_refs", "clear_refs"], ids=["missing", "without effect"])
def test_reset_reports_a_system_that_does_not_do_it(monkeypatch, tmp_path, clear):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  900000 kB\nVmRSS:\t  300000 kB\n")
    monkeypatch.setattr("utils.resources.PROC_STATUS", status)
    monkeypatch.setattr("utils.resources.PROC_CLEAR", tmp_path / clear)
    assert reset_peak_memory() is False
    assert peak_memory_mb() == 921.6


@pytest.mark.skipif(sys.platform == "win32", reason="not measured on Windows")
def test_peak_memory_is_known_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.resources.PROC_STATUS", tmp_path / "no_proc")
    assert peak_memory_mb() > 10


def _peaks_of_a_new_process() -> list[float]:
    """Peaks in MB before and after a block was used and given back, whether a reset worked, and the peak after it.

    In a process of its own: what other tests left behind is collected at any time and would hide the block.
    """
    code = (
        "import numpy as np; from utils.resources import peak_memory_mb, reset_peak_memory\n"
        f"peaks = [peak_memory_mb()]; np.ones({BLOCK_MB * 10**6}, np.uint8); peaks.append(peak_memory_mb())\n"
        "print(*peaks, int(reset_peak_memory()), peak_memory_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return [float(peak) for peak in done.stdout.split()]


def test_checksum_is_sha256_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
