"""Printing what the screen can't show."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_characters_that_stdout_cannot_encode_are_escaped():
    code = "from utils.console import print_anything; print_anything(); print('电缆')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stdout.strip()) == (0, rb"\u7535\u7f06")


COMMANDS = {
    "check_dataset.py": ["utils/check_dataset.py", "{data}"],
    "convert.py": ["utils/convert.py", "--input", "{data}", "--tree", "--output", "{data}/out"],
}


@pytest.fixture
def command(tmp_path, request):
    """A command that prints a line or two, with its name."""
    (tmp_path / "bracket/train/good/xyz").mkdir(parents=True)
    (tmp_path / "bracket/train/good/xyz/a.ply").touch()
    words = [word.format(data=tmp_path) for word in COMMANDS[request.param]]
    return request.param, [sys.executable, *words]


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pipe")
@pytest.mark.parametrize("command", COMMANDS, indirect=True)
def test_a_command_whose_reader_has_gone_ends_quietly(command):
    with subprocess.Popen(command[1], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert b"Broken pipe" not in said
    assert b"BrokenPipeError" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("command", COMMANDS, indirect=True)
def test_output_that_can_not_be_written_is_one_line(command):
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(command[1], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert run.returncode == 1
    assert b"Traceback" not in run.stderr
    assert b"Exception ignored" not in run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="closes as POSIX does")
def test_no_file_gets_the_number_of_a_closed_stderr(tmp_path):
    code = "import sys; from utils.console import print_anything; print_anything(); "
    code += "print(open(sys.argv[1], 'w').fileno())"
    command = '"$0" -c "$1" "$2" 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, code, str(tmp_path / "a")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert int(done.stdout) > 2
