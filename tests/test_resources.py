import hashlib
import sys

import numpy as np
import pytest

from utils.resources import PROC_CLEAR, Stopwatch, peak_memory_mb, reset_peak_memory, sha256_of

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


@pytest.mark.skipif(sys.platform == "win32", reason="not measured on Windows")
def test_peak_memory_sees_what_was_used_and_given_back():
    reset_peak_memory()
    before = peak_memory_mb()
    np.ones(BLOCK_MB * 10**6, np.uint8)
    if PROC_CLEAR.exists():
        assert peak_memory_mb() - before > 0.5 * BLOCK_MB
    assert peak_memory_mb() >= before > 1


def test_checksum_is_sha256_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
