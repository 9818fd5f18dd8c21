"""requirement.lock: exact versions, with hashes, of what requirement.txt asks for on each supported Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirement.lock").read_text(encoding="utf-8")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = {"linux": "x86_64", "darwin": "arm64", "win32": "AMD64"}


def requirements() -> list[Requirement]:
    """The lines of requirement.txt."""
    lines = (ROOT / "requirement.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


def pins() -> list[tuple[Requirement, list[str]]]:
    """The lock's requirements and the hashes of each."""
    entries = re.sub(r"^\s*#.*$", "", LOCK, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    parts = [entry.split("--hash=") for entry in entries if entry.strip()]
    return [(Requirement(first.strip()), [one.strip() for one in hashes]) for first, *hashes in parts]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_has_one_pin_that_satisfies_it(python: str, platform: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "platform_machine": PLATFORMS[platform],
    }
    wanted = [one for one in requirements() if one.marker is None or one.marker.evaluate(environment)]
    pinned = [one for one, _ in pins() if one.marker is None or one.marker.evaluate(environment)]
    names = [canonicalize_name(one.name) for one in pinned]
    assert len(set(names)) == len(names)
    versions = dict(zip(names, pinned, strict=True))
    assert len(wanted) >= 15
    for one in wanted:
        (exact,) = versions[canonicalize_name(one.name)].specifier
        assert one.specifier.contains(exact.version), f"{one} but {exact}; run `make lock`"


def test_pins_are_exact_public_versions_with_hashes() -> None:
    assert len(pins()) > 50
    for requirement, hashes in pins():
        assert requirement.url is None, requirement
        (exact,) = requirement.specifier
        assert exact.operator == "==", requirement
        assert Version(exact.version).local is None, requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement


def test_no_address_and_no_option_is_in_the_lock() -> None:
    assert "//" not in LOCK
    assert not [line for line in LOCK.splitlines() if line.startswith("-")]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("locked", ["0", "1"])
@pytest.mark.parametrize("target", ["demo", "test", "bench"])
def test_make_installs_from_the_lock_if_asked_and_mixes_no_environments(target: str, locked: str) -> None:
    changed = [f"--what-if={name}" for name in ("requirement.txt", "requirement.lock")]
    command = ["make", "--dry-run", *changed, target, f"LOCKED={locked}"]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    environments = set(re.findall(r"\.venv[a-z-]*(?=/bin)", plan))
    assert environments == {".venv-locked" if locked == "1" else ".venv"}
    assert ("--require-hashes -r requirement.lock" in plan) == (locked == "1")
