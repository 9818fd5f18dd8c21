"""Damaged files end in the reader's own error, or in a value that is one: a few in every run, 10,000 on demand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attacks.fuzz import EVERY_READER, fuzz, fuzz_in_child

FEW = 50
MANY = int(os.environ.get("M3DM_MUTANTS", "10000"))
MOST_MEMORY_MB = 1000  # what an image of 67 million pixels takes, which a few bytes may claim to be


@pytest.mark.parametrize("name", EVERY_READER)
def test_damaged_files_are_refused_in_the_reader_s_words_or_give_a_value(name: str, tmp_path: Path) -> None:
    figures = fuzz(name, FEW, tmp_path)
    assert not figures.escaped
    assert figures.accepted + figures.refused.total() == FEW
    assert figures.refused.total() > FEW / 10 or not EVERY_READER[name].error


@pytest.mark.parametrize("name", [name for name, reader in EVERY_READER.items() if not reader.error])
def test_a_reader_that_passes_over_its_own_seeds_is_not_attacked_in_vain(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outdated = replace(EVERY_READER[name], seeds=lambda: [b"{}"])
    monkeypatch.setitem(EVERY_READER, name, outdated)
    with pytest.raises(AssertionError, match="as if it was not there"):
        fuzz(name, FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_READER)
def test_ten_thousand_damaged_files_take_no_memory_to_speak_of_and_none_escapes(name: str) -> None:
    figures = fuzz_in_child(name, MANY)
    assert not figures.escaped
    assert figures.mutants == MANY
    assert figures.peak_mb < MOST_MEMORY_MB
