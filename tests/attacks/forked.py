"""A server that runs commands in forks of itself, torch being imported once; `interposer.c` must be preloaded.

Started as a script. Each line on stdin is a JSON object {script, flags, work, operation, error, kinds, log}; the answer
is a line {status, count}: the exit status, negative for a signal, and how many operations there were.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = ("m3dm_runner", "models.uff.log", "models.uff.engine", "utils.convert", "utils.report.run_report")


def serve(answers: int) -> None:
    """Answer until stdin ends; a fork does not come back."""
    for line in sys.stdin:
        task = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            run(task, writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            count = int(pipe.read() or -1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, json.dumps({"status": status, "count": count}).encode() + b"\n")


def run(task: dict[str, Any], counts: int) -> None:
    """Become the command, which is attacked from now on."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(task["work"])
    sys.argv = [task["script"], *task["flags"]]
    sys.path[0] = str(Path(task["script"]).parent)
    attack = ctypes.CDLL(None)
    attack.attack_begin(
        os.fsencode(task["work"]), ctypes.c_long(task["operation"]), task["error"], task["kinds"]
    )
    status = 0
    try:
        runpy.run_path(task["script"], run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os.write(counts, str(attack.attack_count()).encode())
    os._exit(status)  # Python's own end would take seconds, with all that is imported


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # what is there is not copied to the forks
    answers = os.dup(1)
    serve(answers)
