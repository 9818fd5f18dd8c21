"""Attacks on the commands: killed at any moment, on a full disk, without permission.

    make attacks                                     # a few moments a command
    M3DM_ATTACKS=20 make attacks                     # so many a command, as before a release
    .venv/bin/python -m pytest -m slow tests/attacks -k predict

Each command of `commands.ROWS` runs on a tiny data set that is made for it. `test_kills.py` starts it as a real
process in a group of its own, ends it at random moments (SIGKILL or SIGTERM, to all processes or to the first one
alone), repeats the same command to its end and compares every file with those of an undisturbed run: equal but for
seconds, memory and the like (`results.py`). No process, lock or temporary file may be left.

`test_file_operations.py` goes through a command's file operations one by one (`interposer.c`, preloaded): killed just
before the n-th; the disk full, or no permission, from the n-th on. The latter two must end in one line with the path
and an exit status that is not 0, without half a file, and the command must complete when it is repeated.
"""
