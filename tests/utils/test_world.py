"""A process of torch's launcher ends with it, also when the launcher is gone before the process looks."""

import os

import pytest

from utils import world


class _EndedError(Exception):
    pass


@pytest.mark.parametrize(
    ("first_process", "ends"), [(b"/sbin/init", True), (b"python\0-m\0torch.distributed.run", False)]
)
def test_a_process_whose_launcher_is_gone_already_ends(monkeypatch, first_process, ends):
    def end(status):
        raise _EndedError(status)

    started = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(os, "getppid", lambda: world.INIT)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(world.Path, "read_bytes", lambda _: first_process)
    monkeypatch.setattr(world.threading.Thread, "start", lambda thread: started.append(thread))
    if ends:
        with pytest.raises(_EndedError):
            world.end_with_launcher()
    else:
        world.end_with_launcher()
    assert bool(started) != ends


def test_without_a_launcher_nobody_is_followed(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(os, "getppid", lambda: pytest.fail("the parent is looked at"))
    world.end_with_launcher()
