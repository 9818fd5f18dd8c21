"""A whole run: the classes over the processes, each class's variants, and at the end the tables and the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from typing import Any

import torch

from dataset import DATASETS
from evaluation.at_work import AtWork
from evaluation.class_run import ClassRun
from evaluation.data import ClassFiles
from evaluation.finish import VariantRun, finish, remove_stale, row_name
from evaluation.options import TEMPORARY_FEATURES, RunOptions, Variant
from evaluation.team import Team, everyone, plan_teams
from feature_extractors.networks import attention
from feature_extractors.saved_features import store_meta
from feature_extractors.settings import Settings
from m3dm_runner import M3DM
from models.uff.feature_store import FeatureStoreWriter, StoreMeta
from utils.distributed import join, leave
from utils.resources import shortage_named
from utils.results import ResultsFolder
from utils.signals import Terminated
from utils.versions import versions
from utils.world import World

FINGERPRINT_DIGITS = 12  # of the folder's name
# what each process may have of its own: no file depends on it
OF_A_MACHINE = ("checkpoint_dir", "fusion_module_path", "device", "batch_size", "num_workers", "dist_url")


def run(options: RunOptions, settings: Settings, classes: Sequence[ClassFiles], world: World) -> int:
    """Do the classes, in this process and those beside it; returns the exit status.

    classes: needed in the first process only. Raises ValueError or OSError when something is wrong with weights,
    folders or the disk, and ConnectionError, naming the class, when another process is gone.
    """
    join(world, "gloo", options.dist_url)
    try:
        team = everyone(world)
        classes = team.from_leader(lambda: classes)
        model = _model(options, settings, world)
        _warn(options, world)
        runs = [_variant_run(variant, model, options) for variant in options.variants]
        _check_equal(options, runs, team)
        if world.is_main:
            with _feature_store(options, model, classes) as store:
                team.from_leader(lambda: None)  # the folder is made: the others may go on
                _run_classes(options, runs, classes, store, world, team)
        else:
            team.from_leader(lambda: None)
            _run_classes(options, runs, classes, _shared_store(options, model, classes), world, team)
    finally:
        leave()
    return finish(options, runs, [files.name for files in classes]) if world.is_main else 0


def _run_classes(
    options: RunOptions,
    runs: Sequence[VariantRun],
    classes: Sequence[ClassFiles],
    store: FeatureStoreWriter | None,
    world: World,
    team: Team,
) -> None:
    """The classes that are not done, over the processes; each class's files are on disk as soon as it is done."""

    def of_class(files: ClassFiles, run: VariantRun, team: Team) -> ClassRun:
        return ClassRun(
            files, run.model, run.results, options.each_class, team=team, variant=run.variant, store=store
        )

    def undone(files: ClassFiles) -> list[int]:
        return [i for i, run in enumerate(runs) if not of_class(files, run, team).is_done()]

    by_name = {files.name: files for files in classes}
    to_do: dict[str, list[int]] = team.from_leader(lambda: {name: undone(f) for name, f in by_name.items()})
    for name in by_name:
        if world.is_main and len(to_do[name]) < len(runs):
            print(f"{name}: {_kept(runs, to_do[name])}done by the run that was cut, kept")
        if world.is_main and not to_do[name]:
            _remove_features(options, name)
    names = [name for name in by_name if to_do[name]]
    if world.is_main and names:
        remove_stale(options, names)
    with _watching(AtWork.announced(options.results_dir, team)) as at_work:
        for name, class_team in plan_teams(world, names, alone=runs[0].model.settings.quirks.draws_features):
            at_work.on(name)
            with _naming(name), _kept_features(by_name[name], options, runs, class_team):
                for i in to_do[name]:
                    of_class(by_name[name], runs[i], class_team).run()
        at_work.done()


def _kept(runs: Sequence[VariantRun], undone: Sequence[int]) -> str:
    return f"{len(runs) - len(undone)} of {len(runs)} variants " if undone else ""


@contextmanager
def _watching(announced: AbstractContextManager[AtWork]) -> Iterator[AtWork]:
    """Ends with the class of the process that is gone when another one is. Raises ConnectionError with it."""
    with announced as at_work:
        try:
            yield at_work
        except (ConnectionError, Terminated) as error:
            lost = at_work.lost()
            if lost:
                raise ConnectionError(f"{lost}; repeat the command to go on") from error
            raise


@contextmanager
def _naming(class_name: str) -> Iterator[None]:
    """MemoryError and OSError say which class they ended."""
    try:
        with shortage_named():
            yield
    except MemoryError as error:
        raise MemoryError(f"{class_name}: {error}") from error
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(f"{class_name}: {error}") from error


@contextmanager
def _kept_features(
    files: ClassFiles, options: RunOptions, runs: Sequence[VariantRun], team: Team
) -> Iterator[None]:
    """The variants of a study share a class's features; without --features for the time of the class.

    The fingerprint in their path keeps those that a cut run has left of other data from being used.
    """
    if options.features is not None or not options.is_study or runs[0].model.settings.quirks.draws_features:
        yield
        return
    folder = options.results_dir / TEMPORARY_FEATURES / files.name / files.fingerprint[:FINGERPRINT_DIGITS]
    for run in runs:
        run.model.keep_features(folder)
    yield
    if team.leads:
        _remove_features(options, files.name)


def _remove_features(options: RunOptions, name: str) -> None:
    shutil.rmtree(options.results_dir / TEMPORARY_FEATURES / name, ignore_errors=True)


def _check_equal(options: RunOptions, runs: Sequence[VariantRun], team: Team) -> None:
    """Raises ValueError where this process would do another run, or write other files, than the first one does."""
    here = {field.name: getattr(options, field.name) for field in fields(options)}
    here |= {key: [run.results.header.get(key) for run in runs] for key in runs[0].results.header}
    first = team.from_leader(lambda: here)
    different = [key for key in here if key not in OF_A_MACHINE and first[key] != here[key]]
    if different:
        raise ValueError(
            f"process {team.place} has other {', '.join(different)} than process 0; start all processes with equal "
            "flags, weights and packages"
        )


def _model(options: RunOptions, settings: Settings, world: World) -> M3DM:
    device = options.device
    if world.size > 1 and device in ("auto", "cuda"):
        device = _own_device(device, world)
    return M3DM(
        settings,
        checkpoint_dir=options.checkpoint_dir,
        fusion_module_path=options.fusion_module_path,
        random_weights=options.random_weights,
        device=device,
        point_ops=options.point_ops,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        features=options.features,
    )


def _own_device(device: str, world: World) -> str:
    count = torch.cuda.device_count()
    return f"cuda:{world.local_rank % count}" if count else device


def _warn(options: RunOptions, world: World) -> None:
    if options.random_weights and world.is_main:
        print(
            "warning: --random_weights: these results mean nothing, only that the code runs", file=sys.stderr
        )


def _variant_run(variant: Variant, model: M3DM, options: RunOptions) -> VariantRun:
    other = model.with_random_state(variant.random_state)
    folder = options.results_dir / variant.name
    order = DATASETS[options.dataset_type].classes
    return VariantRun(variant, other, ResultsFolder(folder, _header(options, other, variant), order))


def _feature_store(
    options: RunOptions, model: M3DM, classes: Sequence[ClassFiles]
) -> AbstractContextManager[FeatureStoreWriter | None]:
    """The folder that --save_feature fills, for this run alone."""
    if options.save_feature_path is None:
        return nullcontext()
    return FeatureStoreWriter.open(options.save_feature_path, _store_meta(options, model, classes))


def _shared_store(
    options: RunOptions, model: M3DM, classes: Sequence[ClassFiles]
) -> FeatureStoreWriter | None:
    """The same folder, in the processes beside the one that has opened it."""
    if options.save_feature_path is None:
        return None
    return FeatureStoreWriter(options.save_feature_path, _store_meta(options, model, classes))


def _store_meta(options: RunOptions, model: M3DM, classes: Sequence[ClassFiles]) -> StoreMeta:
    dataset = f"{options.dataset_type} {classes[0].dataset_path.resolve()}"
    return store_meta(model.settings, model.weights, dataset)


def _header(options: RunOptions, model: M3DM, variant: Variant) -> dict[str, Any]:
    """What identifies a run: equal headers give equal numbers, from equal data. What differs here is not joined."""
    each = options.each_class
    paths = {
        "save_feature_path": options.save_feature_path,
        "save_detector": each.save_detector,
        "load_detector": each.load_detector,
    }
    return {
        "dataset_type": options.dataset_type,
        "dataset_path": str(options.dataset_path),
        "method_name": options.method_name,
        "row": row_name(options) + variant.row_suffix,
        "random_weights": options.random_weights,
        "weights": model.weights,
        "settings": model.settings.as_dict(),
        "shots": variant.shots,
        "shot_seed": variant.shot_seed if variant.shots else None,
        "shake": variant.shake,
        "shake_seed": variant.shake_seed if variant.shake else None,
        "attention": attention(),
        "point_ops": model.point_ops,
        "label_by_folder": options.label_by_folder,
        "holdout": each.holdout,
        "threshold_rule": each.threshold_rule,
        **{name: str(path) if path else None for name, path in paths.items()},
        "versions": versions(),
    }
