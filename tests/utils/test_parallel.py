import threading

import pytest
import torch

from utils.parallel import map_on_cores


@pytest.fixture
def four_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_results_come_in_the_order_of_the_items(at_once):
    assert list(map_on_cores(lambda n: n * n, iter(range(20)), at_once)) == [n * n for n in range(20)]


@pytest.mark.usefixtures("four_threads")
def test_each_thread_has_its_share_of_the_cores_and_gives_it_back():
    assert set(map_on_cores(lambda _: torch.get_num_threads(), range(8), 2)) == {2}
    assert torch.get_num_threads() == 4


def test_so_many_items_are_at_work_at_once():
    meeting = threading.Barrier(3, timeout=10)
    assert len(list(map_on_cores(lambda _: meeting.wait(), range(6), 3))) == 6


def test_items_are_taken_only_a_little_ahead_of_the_results():
    taken = []

    def items():
        for n in range(100):
            taken.append(n)
            yield n

    results = map_on_cores(lambda n: n, items(), 2)
    next(results)
    assert len(taken) <= 4
    results.close()


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_reaches_the_caller_after_the_results_before_it(at_once):
    found = []
    with pytest.raises(ZeroDivisionError):
        found.extend(map_on_cores(lambda n: 1 // (3 - n), range(10), at_once))
    results = map_on_cores(lambda n: 1 // (3 - n), range(10), at_once)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
