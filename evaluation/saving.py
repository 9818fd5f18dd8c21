"""Pictures and float maps of a class's test samples (--save_preds)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dataset import stored_mask
from evaluation.evaluate import EvaluatedClass
from utils.image_files import read_rgb
from utils.parallel import map_on_cores
from utils.pictures import (
    CELL_SIDE,
    MapScale,
    resize_map,
    sheet_cell,
    sheet_order,
    thumbnail,
    write_contact_sheet,
    write_map,
    write_picture,
)
from utils.reporting import in_words
from utils.structures import SampleFiles

CONTACT_SHEET = "contact_sheet.png"  # written last: where it is, all pictures are


def save_predictions(folder: Path, evaluated: EvaluatedClass) -> None:
    """Per test sample a picture `<defect>/<stem>.png`, and the float32 map at the stored image's size,
    `test/<defect>/<stem>.tiff`; of all of them a contact sheet.
    """
    thresholds = evaluated.thresholds
    scale = MapScale.of(evaluated.maps, thresholds.pixel if thresholds else None)

    def save_sample(sample: tuple[SampleFiles, float, np.ndarray]) -> np.ndarray:
        files, score, anomaly_map = sample
        image, mask = read_rgb(files.rgb), stored_mask(files)
        resized = resize_map(anomaly_map, (image.shape[0], image.shape[1]))
        defect, stem = files.rgb.parents[1].name, files.rgb.stem
        write_map(folder / "test" / defect / f"{stem}.tiff", resized)
        caption = f"{defect}/{stem}: {in_words(score, files.label, thresholds)}"
        write_picture(folder / defect / f"{stem}.png", image, mask, resized, scale, caption)
        small = thumbnail(image, mask, anomaly_map, scale, CELL_SIDE)[-1]
        return sheet_cell(small, files.label, f"{defect}/{stem} {score:.3g}")

    samples = zip(evaluated.files, evaluated.scores.tolist(), evaluated.maps, strict=True)
    cells = list(map_on_cores(save_sample, samples, torch.get_num_threads()))
    chosen = sheet_order(evaluated.scores)
    write_contact_sheet(folder / CONTACT_SHEET, [cells[i] for i in chosen])
