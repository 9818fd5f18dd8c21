"""All benchmarks, each in a process of its own, as one table: benchmarks/results.md (`make bench`).

python benchmarks/run_all.py                         # all
python benchmarks/run_all.py geometry memory         # some; the others' rows in the file are lost

Sizes are chosen so that all of it ends within 15 minutes on two cores. With M3DM_REAL_DATA (a folder with mvtec3d/
and eyecandies/ as downloaded) real samples are used, else generated ones. A benchmark whose library is not there
(Open3D) is left out; exit status 1 when one failed. The table has the rows of the others.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.timing import COLUMNS
from utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.md"
PACKAGES = ("torch", "numpy", "numba", "scipy", "scikit-learn", "timm")
TIME_LIMIT_S = 600  # of one benchmark


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder, and what its run() is given so that all end in time."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


BENCHMARKS = (
    Benchmark("geometry"),
    Benchmark("group_encoder"),
    Benchmark("fpfh"),
    Benchmark("coreset"),
    Benchmark("nearest"),
    Benchmark("metrics"),
    Benchmark("preprocessing"),
    Benchmark("eyecandies"),
    Benchmark("uff_loss"),
    Benchmark("uff_pairing"),
    Benchmark("precision"),
    Benchmark("memory"),
    Benchmark("end_to_end"),
)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("names", nargs="*", metavar="name", help=f"which (default: all): {', '.join(known)}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # one benchmark, rows to this file
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [benchmark for benchmark in BENCHMARKS if benchmark.name in (args.names or known)]
    if args.worker:
        args.worker.write_text(json.dumps(_outcome(chosen[0])), encoding="utf-8")
        return 0
    return _run_all(chosen, args.results)


def _outcome(benchmark: Benchmark) -> dict[str, Any]:
    """The benchmark's rows, or why it is left out."""
    module = importlib.import_module(f"benchmarks.{benchmark.name}")
    try:
        return {"rows": module.run(**benchmark.options), "left_out": None}
    except ImportError as error:
        return {"rows": [], "left_out": str(error)}


def _run_all(chosen: list[Benchmark], results: Path) -> int:
    begin, rows, left_out, failures = time.perf_counter(), [], [], []
    for benchmark in chosen:
        start = time.perf_counter()
        try:
            outcome = _in_own_process(benchmark)
        except (subprocess.SubprocessError, OSError) as error:
            failures.append(f"{benchmark.name}: {error}")
            print(f"FAILED {failures[-1]}", file=sys.stderr, flush=True)
            continue
        rows += outcome["rows"]
        if outcome["left_out"]:
            left_out.append(f"{benchmark.name}: {outcome['left_out']}")
        print(f"{benchmark.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    table = markdown_table(rows)
    print(table)
    minutes = (time.perf_counter() - begin) / 60
    write_text(results, _report(table, chosen, {"Failed": failures, "Left out": left_out}, minutes))
    return 1 if failures else 0


def _in_own_process(benchmark: Benchmark) -> dict[str, Any]:
    """The outcome of a benchmark. Raises CalledProcessError, or TimeoutExpired after TIME_LIMIT_S."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        command = [sys.executable, str(Path(__file__).resolve()), benchmark.name, "--worker", str(target)]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        subprocess.run(
            command, check=True, cwd=ROOT, env=environment, timeout=TIME_LIMIT_S, stdout=subprocess.DEVNULL
        )
        return json.loads(target.read_text(encoding="utf-8"))


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """A column for each of COLUMNS; what was not measured is "-"."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [tuple("-" if row[name] is None else str(row[name]) for name in COLUMNS) for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def _report(table: str, chosen: list[Benchmark], missing: dict[str, list[str]], minutes: float) -> str:
    data = "real samples" if os.environ.get("M3DM_REAL_DATA") else "generated samples"
    commands = [f"- `python benchmarks/{b.name}.py`{_described(b.options)}" for b in chosen]
    parts = [
        "# Benchmarks",
        'Written by `make bench`; do not edit. "plain" is the plain way, most of the time that of the released '
        'code; what stands there beside "ours", and how it was measured, is said by `--help` of each script.',
        "\n".join(f"- {name}: {value}" for name, value in machine().items()),
        f"All together took {minutes:.1f} minutes, on {data}. Each ran in a process of its own:",
        "\n".join(commands),
        *(
            f"{title}:\n\n" + "\n".join(f"- {line}" for line in lines)
            for title, lines in missing.items()
            if lines
        ),
        table,
    ]
    return "\n\n".join(parts) + "\n"


def _described(options: dict[str, Any]) -> str:
    return ", with " + ", ".join(f"{name} = {value}" for name, value in options.items()) if options else ""


def machine() -> dict[str, str]:
    """What the numbers hang on."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "processor": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{_memory_gb():.0f} GB",
        "GPU": _gpu(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
        "packages": versions,
        "load before": _load(),
        "date": datetime.date.today().isoformat(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    names = [line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return names[0].strip() if names else platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _gpu() -> str:
    import torch  # slow to import, and only the report needs it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none was seen"


def _load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    sys.exit(main())
