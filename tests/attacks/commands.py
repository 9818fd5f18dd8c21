"""The commands that are attacked, a row each, and the tiny data that they work on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import write_class
from tests.eyecandies_scene import write_sample
from tests.sensor_files import made_up_cloud, made_up_image, write_ply
from tests.synthetic_features import write_toy_store
from utils.demo_data import DemoSettings, write_demo_data
from utils.image_files import write_png

ROOT = Path(__file__).parents[2]
EPOCHS = 6
SMALL = "--img_size 32 --num_group 16 --group_size 8 --f_coreset 0.5 --device cpu --unchecked"
TINY_VIT = "--rgb_backbone_name vit_small_patch8_224_dino --random_weights"


@dataclass(frozen=True)
class Row:
    """One command; it runs in a work folder of its own and writes to `out` in it, or to what `prepare` puts there.

    flags: {inputs} stands for the folder of the data, {workers} for a number of processes; earlier: flags of a run
    before the attack, whose results must stay; workers: that number in most attacks, and where the command must be a
    single process; launcher: arguments of Python before the script; prepare: fills the work folder; watched: a line
    of the output that comes so many times before Ctrl-C ends the command; resumes: continues from its checkpoints.
    """

    script: str
    flags: str
    workers: tuple[int, int] = (2, 1)
    earlier: str | None = None
    launcher: str = ""
    prepare: Callable[[Path, Path], object] = lambda inputs, work: None
    watched: int = 0
    resumes: bool = False

    def arguments(
        self, inputs: Path, work: Path, *, alone: bool = False, flags: str | None = None
    ) -> list[str]:
        """Python's arguments: launcher, script and flags."""
        text = (flags or self.flags).format(inputs=inputs, workers=self.workers[alone])
        checkpoints = sorted((work / "out").glob("checkpoint-?.pth")) if self.resumes else []
        resumed = ["--resume", str(checkpoints[-1].relative_to(work))] if checkpoints else []
        return [*self.launcher.split(), str(ROOT / self.script), *text.split(), *resumed]

    def is_done(self, work: Path) -> bool:
        """Whether there is nothing left to repeat, as `make` sees it."""
        return self.resumes and (work / f"out/checkpoint-{EPOCHS - 1}.pth").exists()


def _copy_raw(inputs: Path, work: Path) -> None:
    shutil.copytree(inputs / "raw", work / "out")


MAIN = f"--dataset_path {{inputs}}/ready {SMALL} --num_workers {{workers}} --results_dir out/results"
FPFH = f"--method_name FPFH {MAIN} --save_preds --save_detector out/detectors"
TWO_BANKS = f"--method_name DINO+Point_MAE {MAIN} {TINY_VIT} --save_feature --save_feature_path out/patch_lib"
STUDY = f"--method_name FPFH {MAIN} --features out/features --shake 1e-3 --shake_seeds 0 1"
TRAINING = (
    f"--data_path {{inputs}}/features --output_dir out --log_dir out --device cpu --lr 0.003 --epochs {EPOCHS} "
    "--batch_size 2 --num_workers {workers}"
)
PREDICT = "--detector {inputs}/detectors/bagel.m3dm --output out --device cpu --preprocessed --num_workers {workers}"
PATTERNS = "--xyz_pattern {{stem}}_cloud.ply --rgb_pattern {{stem}}_color.png"
CONVERT = f"--input {{inputs}}/sensor {PATTERNS} --class_name bracket --output out --num_workers {{workers}}"
NUM_PARTS = 6

ROWS = {
    "preprocessing": Row("utils/preprocessing.py", "{inputs}/raw --output_dir out --num_workers {workers}"),
    "preprocessing_in_place": Row("utils/preprocessing.py", "out --num_workers {workers}", prepare=_copy_raw),
    "eyecandies": Row(
        "utils/preprocess_eyecandies.py",
        "--dataset_path {inputs}/eyecandies --target_dir out --num_workers {workers}",
    ),
    "demo_data": Row(
        "utils/demo_data.py",
        "out --image_size 64 --train 3 --validation 1 --test_per_kind 1 --num_workers {workers}",
    ),
    "convert": Row("utils/convert.py", CONVERT),
    "main_fpfh": Row(
        "main.py",
        f"{FPFH} --class_name bagel rope",
        workers=(1, 0),
        earlier=f"{FPFH} --class_name bagel",
    ),
    "main_features": Row(
        "main.py",
        f"{TWO_BANKS} --class_name bagel rope",
        workers=(1, 0),
        earlier=f"{TWO_BANKS} --class_name bagel",
    ),
    "main_two_processes": Row(
        "main.py",
        f"{FPFH} --class_name bagel rope tire",  # the last one is shared by both
        workers=(1, 0),
        launcher="-m torch.distributed.run --standalone --nproc_per_node=2",
    ),
    "main_study": Row("main.py", f"{STUDY} --class_name bagel rope", workers=(1, 0)),
    "training": Row("fusion_pretrain.py", TRAINING, workers=(1, 0), resumes=True),
    "training_two_processes": Row(
        "fusion_pretrain.py",
        TRAINING,
        workers=(1, 0),
        resumes=True,
        launcher="-m torch.distributed.launch --standalone --nproc_per_node=2",
    ),
    "predict": Row(
        "predict.py",
        PREDICT + " --input {inputs}/parts",
        workers=(1, 0),
        earlier=PREDICT + " --input {inputs}/fewer_parts",
    ),
    "predict_watch": Row(
        "predict.py",
        PREDICT + " --watch {inputs}/parts --poll_seconds 0.1",
        workers=(0, 0),
        watched=NUM_PARTS,
    ),
}


def write_inputs(inputs: Path) -> None:
    """All data that the rows name."""
    write_demo_data(inputs / "raw", DemoSettings(train=3, validation=1, test_per_kind=1, image_size=100))
    for name in ("bagel", "rope", "tire"):
        write_class(inputs / "ready", name, validation=2)
    for split in ("train", "test_public"):
        for i in range(6):
            write_sample(inputs / "eyecandies/CandyCane" / split / "data", f"{i:03d}", defect=bool(i % 2))
    write_toy_store(inputs / "features", 9)
    (inputs / "sensor").mkdir()
    for i in range(8):
        write_ply(inputs / f"sensor/{i:03d}_cloud.ply", made_up_cloud(seed=i))
        write_png(inputs / f"sensor/{i:03d}_color.png", made_up_image(seed=i))
    parts = write_class(inputs / "more", "bagel", train=1, good=NUM_PARTS, bad=1) / "test"
    shutil.copytree(parts / "good", inputs / "parts")
    shutil.copytree(parts / "hole", inputs / "fewer_parts")
    _save_detector(inputs)


def _save_detector(inputs: Path) -> None:
    row = Row(
        "main.py", f"--method_name FPFH {MAIN} --class_name bagel --save_detector detectors --holdout 0.3"
    )
    command = [sys.executable, *row.arguments(inputs, inputs, alone=True)]
    subprocess.run(command, cwd=inputs, check=True, capture_output=True)
