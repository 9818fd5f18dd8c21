"""What was found in a data set: one line a kind of trouble, most serious first."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from utils.console import one_line

Level = Literal["error", "remark"]
EXAMPLES = 3  # files named in a line that stands for many

CODES: dict[str, Level] = {  # most serious first
    "layout": "error",  # folders or samples that a run needs are missing or can't be listed
    "unreadable": "error",  # a file can't be used
    "unpaired": "error",  # a sample lacks one of its files
    "foreign_file": "error",  # an image or cloud whose name says that nobody reads it
    "size_mismatch": "error",  # the files of a sample show different pixels
    "mixed_state": "error",  # raw beside preprocessed samples
    "mixed_units": "error",  # metres beside millimetres
    "unit": "error",  # preprocessed samples in millimetres
    "empty_cloud": "error",  # no point measured
    "train_in_test": "error",  # a training file is a test file too
    "mask": "error",  # ground truth contradicts the folder
    "raw": "remark",  # to be preprocessed
    "raw_millimetres": "remark",  # to be preprocessed with --unit mm
    "unknown_unit": "remark",  # neither metres nor millimetres for certain
    "silhouette": "remark",  # an image seems turned or shifted against its cloud
    "duplicate": "remark",  # equal files under two names
    "few_points": "remark",
    "not_finite": "remark",  # NaN or infinite coordinates
    "image_sizes": "remark",  # several in a class
    "no_test": "remark",  # a detector can be fitted, not evaluated
    "no_mask": "remark",  # a kind without ground truth
    "not_read": "remark",  # folders and files that no command reads
    "absent_class": "remark",  # of the data set named with --dataset_type
}
_RANK = {code: rank for rank, code in enumerate(CODES)}


class Finding(NamedTuple):
    """One trouble: `file` relative to the data set and '/'-separated, and text as in "<file>: <problem>; <remedy>"."""

    code: str
    file: str
    problem: str
    remedy: str = ""


@dataclass(frozen=True)
class Group:
    """Findings that are alike but for their files and numbers; `problem` is that of the first file."""

    code: str
    problem: str
    remedy: str
    files: tuple[str, ...]

    @property
    def level(self) -> Level:
        """Whether this alone makes the exit status 1."""
        return CODES[self.code]

    def line(self) -> str:
        """The group in one line."""
        first, *more = self.files
        if more:
            examples = ", ".join(more[: EXAMPLES - 1])
            first += f" (and {len(more)} more, such as {examples})"
        return f"{self.level}: {first}: {self.problem}{self.remedy and '; ' + self.remedy}"


def grouped(findings: Iterable[Finding], root: Path) -> list[Group]:
    """The findings in groups, most serious first, then the larger ones; ROOT in remedies becomes `root`."""
    alike: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        alike[finding.code, re.sub(r"\d+", "#", finding.problem), finding.remedy].append(finding)
    groups = [
        Group(
            code,
            one_line(members[0].problem),
            remedy.replace("ROOT", one_line(shlex.quote(str(root)))),
            tuple(one_line(member.file) for member in members),
        )
        for (code, _, remedy), members in alike.items()
    ]
    return sorted(groups, key=lambda group: (_RANK[group.code], -len(group.files), group.files))
