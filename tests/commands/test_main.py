"""The flags of main.py: the release's names and defaults, and answers to wrong ones."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import main
from feature_extractors.methods import METHODS
from feature_extractors.weights import WeightsSource

ROOT = Path(__file__).parents[2]
RELEASED_DEFAULTS = {
    "method_name": "DINO+Point_MAE+Fusion",
    "max_sample": 400,
    "memory_bank": "multiple",
    "rgb_backbone_name": "vit_base_patch8_224_dino",
    "xyz_backbone_name": "Point_MAE",
    "fusion_module_path": Path("checkpoints/checkpoint-0.pth"),
    "save_feature": False,
    "use_uff": False,
    "save_feature_path": Path("datasets/patch_lib"),
    "save_preds": False,
    "group_size": 128,
    "num_group": 1024,
    "random_state": None,
    "dataset_type": "mvtec3d",
    "dataset_path": Path("datasets/mvtec3d"),
    "img_size": 224,
    "xyz_s_lambda": 1.0,
    "xyz_smap_lambda": 1.0,
    "rgb_s_lambda": 0.1,
    "rgb_smap_lambda": 0.1,
    "fusion_s_lambda": 1.0,
    "fusion_smap_lambda": 1.0,
    "coreset_eps": 0.9,
    "f_coreset": 0.1,
    "asy_memory_bank": None,
    "ocsvm_nu": 0.5,
    "ocsvm_maxiter": 1000,
    "rm_zero_for_project": False,
}
OWN_DEFAULTS = {
    "class_name": None,
    "device": "auto",
    "point_ops": "cpu",
    "checkpoint_dir": Path("checkpoints"),
    "random_weights": False,
    "seed": 0,
    "results_dir": Path("results"),
    "protocol": "ours",
    "batch_size": 1,
    "coreset_dtype": None,
    "feature_dtype": None,
    "precision": "float32",
    "quirk": [],
    "save_detector": None,
    "load_detector": None,
    "holdout": 0.0,
    "threshold_rule": "max",
    "label_by_folder": False,
    "unchecked": False,
    "fingerprint": "times",
    "features": None,
    "shots": None,
    "shot_seeds": [0],
    "random_states": None,
    "shake": None,
    "shake_seeds": [0],
    "dist_url": "env://",
    "local_rank": -1,
}
RELEASED_COMMANDS = [
    "main.py --method_name DINO+Point_MAE --memory_bank multiple --save_feature",
    "main.py --method_name DINO+Point_MAE --memory_bank multiple --rgb_backbone_name vit_base_patch8_224_dino "
    "--xyz_backbone_name Point_MAE --save_feature",
    "main.py --method_name DINO+Point_MAE+Fusion --use_uff --memory_bank multiple "
    "--fusion_module_path checkpoints/{FUSION_CHECKPOINT}.pth",
    "main.py --method_name DINO --memory_bank single",
    "main.py --method_name Point_MAE --memory_bank single",
]
FUSION = "--method_name DINO+Point_MAE+Fusion --use_uff"
WRONG_FLAGS = {
    "": "add --use_uff",
    "--method_name Fusion": "add --use_uff",
    "--method_name DINO --memory_bank multiple": "use --memory_bank single",
    f"{FUSION} --memory_bank single": "use --memory_bank multiple",
    "--method_name DINO --use_uff": "drop --use_uff",
    "--method_name DINO+Point_MAE --use_uff": "use --method_name DINO+Point_MAE+Fusion",
    "--method_name DINO --save_feature": "use --method_name DINO+Point_MAE",
    "--method_name FPFH --save_feature": "use --method_name DINO+Point_MAE",
    "--method_name FPFH --xyz_backbone_name Point_MAE": "drop --xyz_backbone_name Point_MAE",
    "--method_name DINO --img_size 223": "use 224",
    "--method_name DINO --coreset_eps 1": "must lie between 0 and 1",
    "--method_name DINO --ocsvm_nu 1.5": "1 at most",
    "--method_name DINO --rm_zero_for_project": "use --method_name Point_MAE",
    "--method_name DINO --asy_memory_bank 3": "use --method_name DINO+Point_MAE+Fusion",
    "--method_name PatchCore": "choose from 'DINO', 'Point_MAE'",
    "--method_name DINO --rgb_backbone_name resnet50": "choose from 'vit_base_patch8_224_dino'",
    "--method_name DINO --dataset_type visa": "choose from 'mvtec3d', 'eyecandies'",
    "--method_name DINO --quirk blurr=gaussian": "there are uff_pairing",
    "--method_name DINO --quirk blur": "must be one of pil_8bit, gaussian",
    "--method_name DINO --max_sample 0": "not a positive whole number",
    "--method_name DINO --f_coreset nan": "not a positive number",
    "--method_name DINO --f_coreset 5": "1 at most",
    "--method_name DINO --holdout 0.1": "goes with --save_detector",
    "--method_name DINO --threshold_rule median": "must be max, quantile:Q",
    "--method_name DINO --threshold_rule quantile:2": "must be max, quantile:Q",
    "--method_name DINO --load_detector d --save_detector e": "drop --save_feature and --save_detector",
    "--method_name DINO --num_workers -1": "0 is the least",
    "--method_name DINO --results_dir ''": "is empty; was a variable",
    "--method_name DINO --shot_seeds 1": "goes with --shots",
    "--method_name DINO --shake_seeds 1 2": "goes with --shake",
    "--method_name DINO --shots 5 --max_sample 4": "--max_sample allows 4",
    "--method_name DINO --random_states 1 2 --random_state 3": "drop one of them",
    "--method_name DINO --random_states 1 1": "names a seed twice",
    "--method_name DINO --random_states 1 2 --save_detector d": "drop them, or --save_feature",
    "--method_name DINO+Point_MAE --shots 5 --save_feature": "drop them, or --save_feature",
    "--method_name DINO --features f --fingerprint contents": "drop it, or --fingerprint contents",
    "--method_name DINO --shake 1e-6 --save_detector d": "drop them, or --save_feature",
    "--method_name DINO --load_detector d --shots 2": "drop --random_states, --shots and --shake",
    "--method_name DINO --protocol released --features f": "drop one of the two",
    "--method_name DINO --f_coreset inf": "not a positive number",
    "--method_name DINO --xyz_s_lambda nan": "not a finite number",
    "--method_name DINO --seed 99999999999": "not within 0..4294967295",
    "--method_name DINO --random_state -1": "not within 0..4294967295",
}


def _args(line: str):
    return main.get_args_parser().parse_args(shlex.split(line))


def _lambdas(settings):
    for bank in settings.method.banks:
        yield f"{bank.source}_s_lambda", bank, "score_factor"
        yield f"{bank.source}_smap_lambda", bank, "map_factor"


def _effective_defaults() -> dict[str, object]:
    """The defaults; where a flag is implied by others, what it is implied to be."""
    args = _args("")
    settings = main.settings_from_args(args)
    return {
        **vars(args),
        "memory_bank": args.memory_bank or METHODS[args.method_name].memory_bank,
        "xyz_backbone_name": settings.xyz_backbone_name,
        "fusion_module_path": WeightsSource(fusion_module_path=args.fusion_module_path).fusion(),
        **{name: getattr(bank, factor) for name, bank, factor in _lambdas(settings)},
    }


@pytest.mark.parametrize(("flag", "default"), {**RELEASED_DEFAULTS, **OWN_DEFAULTS}.items())
def test_flag_is_there_with_its_default(flag, default):
    assert _effective_defaults()[flag] == default


def test_no_flag_is_untested():
    assert set(vars(_args(""))) == {*RELEASED_DEFAULTS, *OWN_DEFAULTS, "num_workers"}


def test_settings_of_no_flags_are_the_defaults_of_settings():
    from feature_extractors.settings import Settings

    assert main.settings_from_args(_args("")) == Settings()


@pytest.mark.parametrize("command", RELEASED_COMMANDS)
def test_commands_of_the_release_parse_without_contradiction(command):
    args = _args(command.removeprefix("main.py"))
    assert main.find_contradiction(args) is None


@pytest.mark.parametrize("readme", sorted(ROOT.glob("README*.md")), ids=lambda path: path.name)
def test_commands_in_the_readme_parse_without_contradiction(readme):
    text = readme.read_text(encoding="utf-8")
    commands = re.findall(r"^python3? main\.py (.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        if command != "--help":
            assert main.find_contradiction(_args(command)) is None


@pytest.mark.parametrize(("line", "remedy"), WRONG_FLAGS.items())
def test_wrong_flags_exit_with_2_and_one_line_that_says_what_to_type(line, remedy, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main.main(shlex.split(line))
    assert exit_info.value.code == 2
    *usage, answer = capsys.readouterr().err.splitlines()
    assert len(usage) <= 1
    assert answer.startswith("main.py: error: ")
    assert remedy in answer


@pytest.mark.parametrize("line", ["--help", "--method_name DINO --use_uff", "--method_name DINO --quirk x=y"])
def test_help_and_wrong_flags_are_answered_without_importing_torch(line):
    code = (
        "import sys, runpy\n"
        "try: runpy.run_path('main.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(line)], cwd=ROOT, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()


def test_the_flag_that_torchs_old_launcher_adds_is_taken():
    assert _args("--local-rank=1").local_rank == 1


def test_help_says_something_of_every_flag():
    actions = main.get_args_parser()._actions
    assert [action.dest for action in actions if not action.help] == []


def test_flags_reach_the_settings():
    line = "--method_name Point_MAE --xyz_backbone_name Point_Bert --num_group 8 --rgb_s_lambda 0.3 --f_coreset 1"
    settings = main.settings_from_args(
        _args(f"{line} --protocol published --coreset_dtype float16 --quirk blur=pil_8bit")
    )
    assert (settings.xyz_backbone_name, settings.num_group, settings.f_coreset) == ("Point_Bert", 8, 1.0)
    assert (settings.rgb_s_lambda, settings.rgb_smap_lambda) == (0.3, None)
    quirks = settings.quirks
    assert (quirks.blur, quirks.coreset_dtype, quirks.standardize) == ("pil_8bit", "float16", "own")


def test_random_weights_include_the_fusion_block_unless_its_checkpoint_is_named():
    assert WeightsSource(random_weights=True).fusion() is None
    assert WeightsSource(fusion_module_path=Path("a.pth"), random_weights=True).fusion() == Path("a.pth")
