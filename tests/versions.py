"""The tests at the lowest and at the newest versions that requirement.txt allows, a table row for each Python.

    pip install uv && python tests/versions.py [3.10 3.12 ...] [--folder DIR] [--resolution lowest|newest]

An environment of up to 6 GB is made for each row, outside the project. Pythons are found, not installed. Where a floor
has no wheels for a Python, the first version that has them stands for it; where no version has, the row says so. Exit
status 1 when a test fails, or none ran.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}  # here: uv's
TESTS = """
    utils models feature_extractors test_dataset.py commands/test_main.py
    commands/test_fusion_pretrain.py::test_two_processes_make_the_updates_of_one_with_twice_the_batch
""".split()
SHOWN = ("torch", "numpy", "scipy", "scikit-learn", "numba", "pillow", "timm")


def uv(*arguments: str | Path) -> str:
    """What uv prints. CalledProcessError with its message when it fails."""
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def find_python(version: str) -> str | None:
    """Path of an installed Python, or None."""
    try:
        return uv("python", "find", "--no-python-downloads", "--system", version).strip()
    except subprocess.CalledProcessError:
        return None


def make_environment(folder: Path, python: str, resolution: str) -> Path:
    """The Python of a fresh environment with requirement.txt, from wheels alone, and pytest."""
    uv("venv", "--quiet", "--clear", "--python", python, folder)
    inside = folder / "bin" / "python"
    install = ("pip", "install", "--quiet", "--only-binary", ":all:", "--python", inside)
    uv(*install, "--resolution", RESOLUTIONS[resolution], "-r", "requirement.txt")
    uv(*install, "pytest", "hypothesis")
    return inside


def tested(folder: Path, version: str, python: str, resolution: str) -> tuple[int | None, str]:
    """Exit status of the tests, None where none could run, and the row of the table."""
    environment, log = folder / f"{version}-{resolution}", folder / f"{version}-{resolution}.log"
    try:
        inside = make_environment(environment, python, resolution)
    except subprocess.CalledProcessError as error:
        log.write_text(error.stderr, encoding="utf-8")
        return None, f"| {version} | {resolution} | can't be installed, see {log} | |"
    status, counts = run_tests(inside, log)
    return status, f"| {version} | {resolution} | {counts} | {installed(inside)} |"


def installed(python: Path) -> str:
    """The versions that are shown in the table."""
    lines = uv("pip", "freeze", "--quiet", "--python", python).splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    return ", ".join(f"{name} {versions[name]}" for name in SHOWN)


def run_tests(python: Path, log: Path) -> tuple[int, str]:
    """Exit status of pytest, and its last line, such as `1495 passed, 40 skipped`; its output goes to the log."""
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "--tb=short"]
    command += [f"tests/{name}" for name in TESTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False)
    counts = re.findall(r"^.*\d+ (?:passed|failed|error).*$", log.read_text(encoding="utf-8"), re.MULTILINE)
    return status.returncode, counts[-1].strip("= ") if counts else f"no test ran, see {log}"


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pythons", nargs="*", default=PYTHONS, help="default: those of %(default)s that are installed"
    )
    parser.add_argument("--folder", type=Path, help="where environments and logs go (default: a new one)")
    parser.add_argument("--resolution", choices=RESOLUTIONS, help="default: both")
    return parser.parse_args()


def main() -> int:
    args = parse_flags()
    if importlib.util.find_spec("uv") is None:
        print("versions.py: error: uv is missing; pip install uv", file=sys.stderr)
        return 1
    folder = args.folder or Path(tempfile.mkdtemp(prefix="versions-"))
    folder.mkdir(parents=True, exist_ok=True)
    statuses: list[int | None] = []
    print(f"environments and logs: {folder}\n\n| Python | resolution | tests | versions |\n|---|---|---|---|")
    for version in args.pythons:
        found = find_python(version)
        if found is None:
            print(f"| {version} | | this Python is not installed | |", flush=True)
            continue
        for resolution in [args.resolution] if args.resolution else RESOLUTIONS:
            status, row = tested(folder, version, found, resolution)
            statuses.append(status)
            print(row, flush=True)
    ran = [status for status in statuses if status is not None]
    return int(not ran or any(ran))


if __name__ == "__main__":
    sys.exit(main())
