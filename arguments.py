"""The flags of main.py: what they are, what contradicts what, and the settings that they make."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from feature_extractors.methods import METHODS, XYZ_DIMS, default_xyz_backbone
from feature_extractors.settings import PROTOCOLS, Lambdas, Quirks, Settings, quirk_values
from utils.flags import HelpFormatter, finite_float, natural, positive, positive_float, seed

DESCRIPTION = "Fit and evaluate M3DM, class by class, and write the result tables."
RGB_BACKBONES = (
    "vit_base_patch8_224_dino",
    "vit_base_patch8_224",
    "vit_base_patch8_224_in21k",
    "vit_small_patch8_224_dino",
)
DEFAULT_FUSION_CHECKPOINT = "checkpoints/checkpoint-0.pth"
IMAGE_SIZE_STEP = 8  # pixels; a ViT patch
MOST_WORKERS = 4  # one or two already keep up with the networks


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "main.py", usage="%(prog)s [flags]", description=DESCRIPTION, formatter_class=HelpFormatter
    )
    add = parser.add_argument_group("what to run").add_argument
    add(
        "--method_name",
        default="DINO+Point_MAE+Fusion",
        choices=list(METHODS),
        help="which banks and decision",
    )
    add("--memory_bank", choices=["multiple", "single"], help="must agree with the method, which implies it")
    add("--use_uff", action="store_true", help="required by the methods with a fusion bank")
    add("--save_feature", action="store_true", help="also save the training features, for fusion_pretrain.py")
    add("--save_preds", action="store_true", help="also write a picture and a float map of each test sample")

    add = parser.add_argument_group("data").add_argument
    add("--dataset_type", default="mvtec3d", choices=["mvtec3d", "eyecandies"], help="whose class names")
    add("--dataset_path", default="datasets/mvtec3d", type=Path, help="the preprocessed data set")
    add("--class_name", nargs="+", metavar="NAME", help="classes to run (default: those that are there)")
    add("--max_sample", default=400, type=positive, help="training samples a class at most")
    add("--img_size", default=224, type=positive, help="side of the network's input, a multiple of 8 pixels")

    add = parser.add_argument_group("backbones and weights").add_argument
    add("--rgb_backbone_name", default=RGB_BACKBONES[0], choices=RGB_BACKBONES, help="the image network")
    add(
        "--xyz_backbone_name",
        choices=list(XYZ_DIMS),
        help="the point network, or FPFH (default: as the method says)",
    )
    add("--checkpoint_dir", default="checkpoints", type=Path, help="folder of the downloaded weights")
    add("--fusion_module_path", type=Path, help=f"UFF checkpoint (default: {DEFAULT_FUSION_CHECKPOINT})")
    add(
        "--random_weights",
        action="store_true",
        help="initialise by --seed: tries the pipeline, knows nothing",
    )
    add("--group_size", default=128, type=positive, help="points of a group")
    add("--num_group", default=1024, type=positive, help="groups of a cloud")

    add = parser.add_argument_group("memory banks and decision").add_argument
    add("--f_coreset", default=0.1, type=positive_float, help="share of the rows a bank keeps; 1 keeps all")
    add("--coreset_eps", default=0.9, type=positive_float, help="error of the random projection, below 1")
    add("--coreset_dtype", choices=["float16", "float32"], help="arithmetic of the greedy k-centre")
    add(
        "--random_state",
        type=seed,
        help="of the random projections; default as the release: one per class",
    )
    add("--asy_memory_bank", type=positive, help="only so many samples feed the xyz and fusion banks")
    add(
        "--rm_zero_for_project",
        action="store_true",
        help="drop rows with zeros before the coreset (Point_MAE)",
    )
    add("--ocsvm_nu", default=0.5, type=positive_float, help="nu of the one-class SVMs")
    add("--ocsvm_maxiter", default=1000, type=positive, help="passes of the one-class SVMs at most")
    for bank, default in Lambdas().score.items():
        add(
            f"--{bank}_s_lambda", default=default, type=finite_float, help=f"factor of the {bank} image score"
        )
        add(f"--{bank}_smap_lambda", default=default, type=finite_float, help=f"factor of the {bank} map")
    add("--protocol", default="ours", choices=list(PROTOCOLS), help="preset of the quirks (README, 'Quirks')")
    add("--quirk", nargs="+", default=[], metavar="NAME=VALUE", help=f"single quirks: {_quirk_help()}")

    add = parser.add_argument_group("output").add_argument
    add("--results_dir", default="results", type=Path, help="where tables, scores and pictures go")
    add("--save_feature_path", default="datasets/patch_lib", type=Path, help="where --save_feature writes")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:I; auto takes the GPU if there is one")
    add(
        "--num_workers",
        default=min(MOST_WORKERS, (os.cpu_count() or 2) // 2),
        type=natural,
        help="loader processes",
    )
    add(
        "--batch_size",
        default=1,
        type=positive,
        help="samples a forward pass; the results do not depend on it",
    )
    add(
        "--feature_dtype",
        choices=["float32", "float16"],
        help="of training features (default: float32 in memory, float16 on disk)",
    )
    add("--precision", default="float32", choices=["float32", "bf16"], help="arithmetic of the backbones")
    add("--seed", default=0, type=seed, help="of everything else that is random")
    return parser


def find_contradiction(args: argparse.Namespace) -> str | None:
    """What is wrong with the flags taken together, and what to type instead; None if nothing is."""
    spec, name = METHODS[args.method_name], args.method_name
    problems = [
        (
            args.memory_bank not in (None, spec.memory_bank),
            f"--memory_bank {args.memory_bank} does not go with --method_name {name}; "
            f"use --memory_bank {spec.memory_bank}",
        ),
        (
            spec.uses_fusion and not args.use_uff,
            f"--method_name {name} has a fusion bank; add --use_uff",
        ),
        (
            args.use_uff and not spec.uses_fusion,
            f"--method_name {name} has no fusion bank; drop --use_uff, "
            "or use --method_name DINO+Point_MAE+Fusion or Fusion",
        ),
        (
            args.save_feature and not (spec.uses_rgb and spec.uses_xyz),
            "--save_feature needs both modalities; use --method_name DINO+Point_MAE",
        ),
        (
            args.img_size % IMAGE_SIZE_STEP != 0,
            f"--img_size {args.img_size} is no multiple of {IMAGE_SIZE_STEP}, the side of a ViT patch; use 224",
        ),
        (
            name == "FPFH" and args.xyz_backbone_name not in (None, "FPFH"),
            f"--method_name FPFH has no other backbone; drop --xyz_backbone_name {args.xyz_backbone_name}, "
            "or use --method_name Point_MAE",
        ),
        (args.coreset_eps >= 1, f"--coreset_eps {args.coreset_eps} must be below 1; the release uses 0.9"),
        (args.ocsvm_nu > 1, f"--ocsvm_nu {args.ocsvm_nu} must be at most 1; the release uses 0.5"),
        (
            args.rm_zero_for_project and spec.banks != ("xyz",),
            "--rm_zero_for_project works on a single xyz bank; use --method_name Point_MAE",
        ),
        (
            args.asy_memory_bank is not None and len(spec.banks) != 3,
            "--asy_memory_bank works on three banks; use --method_name DINO+Point_MAE+Fusion",
        ),
    ]
    return next((text for holds, text in problems if holds), None)


def settings_from_args(args: argparse.Namespace) -> Settings:
    """The flags that numbers depend on, as one object. Raises ValueError for an unknown quirk."""
    backbone = args.xyz_backbone_name or default_xyz_backbone(args.method_name)
    names = {field.name for field in dataclasses.fields(Settings)} & set(vars(args)) - {"xyz_backbone_name"}
    lambdas = Lambdas(
        score={bank: getattr(args, f"{bank}_s_lambda") for bank in Lambdas().score},
        map={bank: getattr(args, f"{bank}_smap_lambda") for bank in Lambdas().map},
    )
    return Settings(
        **{name: getattr(args, name) for name in names},
        xyz_backbone_name=backbone,
        quirks=_quirks_from_args(args),
        lambdas=lambdas,
    )


def _quirks_from_args(args: argparse.Namespace) -> Quirks:
    changes = dict(item.split("=", 1) if "=" in item else (item, "") for item in args.quirk)
    if args.coreset_dtype is not None:
        changes["coreset_dtype"] = args.coreset_dtype
    return PROTOCOLS[args.protocol].replace(changes)


def _quirk_help() -> str:
    return ", ".join(f"{name}={'|'.join(values)}" for name, values in quirk_values().items())
