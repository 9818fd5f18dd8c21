"""A whole run: the classes over the processes, each class's variants, and at the end the tables and the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

from dataset import DATASETS
from evaluation.at_work import AtWork
from evaluation.class_run import ClassRun
from evaluation.data import ClassFiles
from evaluation.options import RunOptions, Variant
from evaluation.study import summary
from evaluation.team import PATIENCE, Team, everyone, plan_teams
from feature_extractors.networks import attention
from feature_extractors.saved_features import store_meta
from feature_extractors.settings import Settings
from m3dm_runner import M3DM
from models.uff.feature_store import FeatureStoreWriter, StoreMeta
from utils.distributed import join, leave
from utils.files import write_json
from utils.report.run_report import write_report
from utils.reporting import append_tables, problem_lines, versions
from utils.results import RESULTS_NAME, ResultsFolder
from utils.signals import Terminated
from utils.world import World

TEMPORARY_FEATURES = ".features"  # of a study without --features; its classes' folders go when they are done


class VariantRun(NamedTuple):
    """One variant with its model, which shares the networks with the others, and its results folder."""

    variant: Variant
    model: M3DM
    results: ResultsFolder


def run(options: RunOptions, settings: Settings, classes: Sequence[ClassFiles], world: World) -> int:
    """Do the classes, in this process and those beside it; returns the exit status.

    classes: needed in the first process only. Raises ValueError or OSError when something is wrong with weights,
    folders or the disk, and ConnectionError, naming the class, when another process is gone.
    """
    join(world, "gloo", patience=PATIENCE)
    try:
        team = everyone(world)
        classes = team.from_leader(lambda: classes)
        model = _model(options, settings, world)
        _warn(options, world)
        runs = [_variant_run(variant, model, options) for variant in options.variants]
        if world.is_main:
            with _feature_store(options, model, classes) as store:
                team.from_leader(lambda: None)  # the folder is made: the others may go on
                _run_classes(options, runs, classes, store, world, team)
        else:
            team.from_leader(lambda: None)
            _run_classes(options, runs, classes, _shared_store(options, model, classes), world, team)
    finally:
        leave()
    return _finish(options, runs, [files.name for files in classes]) if world.is_main else 0


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
    with _watching(AtWork.announced(options.results_dir, team)) as at_work:
        for name, class_team in plan_teams(world, names, alone=runs[0].model.draws_features):
            at_work.on(name)
            with _naming(name), _kept_features(name, options, runs, class_team):
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
        yield
    except MemoryError as error:
        raise MemoryError(f"{class_name}: {error}") from error
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(f"{class_name}: {error}") from error


@contextmanager
def _kept_features(name: str, options: RunOptions, runs: Sequence[VariantRun], team: Team) -> Iterator[None]:
    """The variants of a study share a class's features; without --features for the time of the class."""
    if options.features is not None or not options.is_study or runs[0].model.draws_features:
        yield
        return
    folder = options.results_dir / TEMPORARY_FEATURES / name
    for run in runs:
        run.model.keep_features(folder)
    yield
    if team.leads:
        _remove_features(options, name)


def _remove_features(options: RunOptions, name: str) -> None:
    folder = options.results_dir / TEMPORARY_FEATURES
    shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):  # another class's are there
        folder.rmdir()


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
    import torch

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
    """What identifies a run: equal headers give equal numbers, from equal data."""
    each = options.each_class
    paths = {
        "save_feature_path": options.save_feature_path,
        "save_detector": each.save_detector,
        "load_detector": each.load_detector,
    }
    return {
        "method_name": model.settings.method_name,
        "row": _row_name(options, model) + variant.row_suffix,
        "random_weights": options.random_weights,
        "weights": model.weights,
        "settings": model.settings.as_dict(),
        "shots": variant.shots,
        "shot_seed": variant.shot_seed if variant.shots else None,
        "shake": variant.shake,
        "shake_seed": variant.shake_seed if variant.shake else None,
        "attention": attention(),
        "label_by_folder": options.label_by_folder,
        "holdout": each.holdout,
        "threshold_rule": each.threshold_rule,
        **{name: str(path) if path else None for name, path in paths.items()},
        "versions": versions(),
    }


def _row_name(options: RunOptions, model: M3DM) -> str:
    return model.settings.method_name + (" (random weights)" if options.random_weights else "")


def _finish(options: RunOptions, runs: Sequence[VariantRun], names: Sequence[str]) -> int:
    """Join the classes' results, append the rows to the tables, write the reports; returns the exit status."""
    records = {run.variant.name: run.results.joined() for run in runs}
    told = [_write_tables_and_report(run, records[run.variant.name]) for run in runs]
    print(_write_summary(options, runs, records) if options.is_study else told[0])
    for run in runs:
        run.results.complete(names)  # last: a run cut in the tables goes on with them
    return max(_tell_problems(run, records[run.variant.name], names) for run in runs)


def _write_tables_and_report(run: VariantRun, record: Mapping[str, Any]) -> str:
    """Returns what is to be shown on the screen: the tables, and where the report is."""
    report = write_report(run.results.folder, record, Settings(run.model.settings.method_name).as_dict())
    tables = append_tables(run.results.folder, record["row"], record["classes"])
    return f"{tables}\nreport: {report}"


def _tell_problems(run: VariantRun, record: Mapping[str, Any], names: Sequence[str]) -> int:
    """What went wrong with this run's classes; returns 1 when one failed or is doubtful."""
    where = f"{run.variant.name}: " if run.variant.name else ""
    for line in problem_lines(dict(record), list(names)):
        print(f"{where}{line}", file=sys.stderr)
    others = run.results.of_other_runs()
    if others:
        print(
            f"{where}in {run.results.folder} other runs' classes are left as they are, and not joined with these: "
            f"{', '.join(others)}"
        )
    doubtful = any(record["classes"].get(name, {}).get("doubt") for name in names)
    return 1 if doubtful or any(name in record["failed_classes"] for name in names) else 0


def _write_summary(
    options: RunOptions, runs: Sequence[VariantRun], records: Mapping[str, Mapping[str, Any]]
) -> str:
    """The study's results.json and tables: mean and deviation over the variants, of the classes that all have."""
    first = records[runs[0].variant.name]
    everywhere = [name for name in first["classes"] if all(name in r["classes"] for r in records.values())]
    classes = {
        name: summary({variant: record["classes"][name] for variant, record in records.items()})
        for name in everywhere
    }
    failed: dict[str, str] = {}
    for variant, record in records.items():
        failed |= {name: f"{variant}: {reason}" for name, reason in record["failed_classes"].items()}
    row = f"{_row_name(options, runs[0].model)} ({_about(runs)})"
    content = {
        **first,
        **{"row": row, "shot_seed": None, "shake_seed": None, "variants": list(records)},
        **{"complete": True, "classes": classes, "failed_classes": failed},
    }
    write_json(options.results_dir / RESULTS_NAME, content)
    deviations = {name: result["deviation"] for name, result in classes.items()}
    return append_tables(options.results_dir, f"{row}, mean", classes) + append_tables(
        options.results_dir, f"{row}, deviation", deviations
    )


def _about(runs: Sequence[VariantRun]) -> str:
    shots = f"{runs[0].variant.shots} shots, " if runs[0].variant.shots else ""
    return f"{shots}{len(runs)} variants"
