"""Imports run one way: evaluation -> m3dm_runner -> feature_extractors -> models -> utils; dataset -> utils."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["utils", "models", "feature_extractors", "m3dm_runner", "evaluation", "main"]
ALLOWED = {
    "utils": {"utils"},
    "models": {"utils", "models"},
    "feature_extractors": {"utils", "models", "feature_extractors"},
    "dataset": {"utils"},
    "m3dm_runner": {"utils", "models", "feature_extractors", "dataset"},
    "evaluation": {"utils", "models", "feature_extractors", "dataset", "m3dm_runner", "evaluation"},
    "main": {"utils", "models", "feature_extractors", "dataset", "evaluation"},
    "fusion_pretrain": {"utils", "models", "feature_extractors"},
    "predict": {"utils", "dataset", "feature_extractors", "m3dm_runner", "evaluation"},
}
COMMANDS = {"utils/download.py": {"utils", "models"}}  # an entry script, which reads the tables of downloads
OURS = set(ALLOWED)


def _files():
    return [
        p.relative_to(ROOT)
        for name in ALLOWED
        for p in sorted([*ROOT.glob(f"{name}/**/*.py"), *ROOT.glob(f"{name}.py")])
    ]


def _imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert all(alias.name != "*" for alias in node.names), "star import"
            yield node.module


@pytest.mark.parametrize("file", _files(), ids=str)
def test_imports_run_one_way(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    used = {name.split(".")[0] for name in _imported(tree)} & OURS
    assert used <= COMMANDS.get(file.as_posix(), ALLOWED[file.parts[0].removesuffix(".py")])


@pytest.mark.parametrize("file", _files(), ids=str)
def test_argparse_stops_at_the_entry_scripts(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    takes_flags = 'if __name__ == "__main__"' in text or file.name == "flags.py"
    only_reads_namespaces = file.name in ("checkpoints.py", "block.py")  # old checkpoints hold one
    assert takes_flags or only_reads_namespaces or "argparse" not in text


@pytest.mark.parametrize(
    "name",
    [
        "feature_extractors.settings",
        "models.backbones",
        "dataset",
        "utils.reporting",
        "utils.report.run_report",
        "utils.report.parts_report",
        "main",
    ],
)
def test_plain_data_imports_no_torch(name):
    import subprocess
    import sys

    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
