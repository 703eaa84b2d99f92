"""The options of `examples/train_alexnet.py`: what they are, and what follows from them.

A run keeps its options in run.json, and --resume uses those: only what does not change the result,
or where it is computed, may be given anew.
"""

import argparse
import shlex
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from layers import Device
from layers.fast.plan import KERNELS
from layers.fast.precision import PRECISIONS
from tinyconv.data import commands
from tinyconv.data.open_data import Data
from tinyconv.recipes import RECIPES
from tinyconv.run.models import MODELS
from tinyconv.run.run_folder import RunFolder
from tinyconv.schedule import Plateau, Schedule, Steps
from tinyconv.sequential import Sequential, settle_tier

MAY_CHANGE = {
    *("data", "device", "precision", "kernels", "parallel", "no_graph", "epochs", "resume"),
    *("checkpoint_minutes", "checkpoint_steps", "watch", "tensorboard"),
}
"""Options that --resume may be given anew; the data must be the same, wherever they are now."""

OVERFIT_LR = 0.005


def parse(
    description: str | None, arguments: list[str] | None
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """All options, and those that were given, by name; `description` is for --help."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="PATH", help="folder {train,val}/<class>/, or .h5; default: drawn photos")
    add("--classes", type=int, help="take only the first so many classes of a folder")
    add("--val-share", type=float, metavar="SHARE",
        help="set this share of a folder <class>/ aside for validation, such as 0.2")  # fmt: skip
    add("--image-size", type=int, help="side of the crop the net sees (of a folder's photos: host "
        "96, GPU 224; of a prepared file: 7/8 of its squares)")  # fmt: skip
    add("--width", type=float, help="filters and units relative to the paper's (host 0.25, GPU 1)")
    add("--batch-size", type=int, default=64, help="images a step, on all devices together "
        "(default 64; the paper: 128)")  # fmt: skip
    add("--epochs", type=int, default=10, help="times through the training set (default 10)")
    add("--lr", type=float, default=0.01, help="first learning rate (default 0.01, the paper's)")
    add("--schedule", choices=("steps", "plateau", "constant"), default="steps",
        help="divide the rate by 10: before the epochs of --drops (default), when validation stops "
        "improving (the paper's rule), or never")  # fmt: skip
    add("--drops", metavar="EPOCHS", help="for steps: such as 23,51,78 (default: the last third)")
    add("--patience", type=int, default=5, help="for plateau: epochs without a new best (5)")
    add("--model", choices=MODELS, default="alexnet", help="alexnet (default), one-column "
        "(torchvision's), or one of the 2012 authors' nets for CIFAR-10, with its own recipe (and "
        "--lr 0.001)")  # fmt: skip
    add("--recipe", choices=RECIPES, default="robust", help="initial weights and the like")
    add("--init-from", metavar="NET", help="begin with a trained net's weights: every layer that "
        "fits; the folder of a run, or a weights file")  # fmt: skip
    add("--freeze", metavar="LAYERS", help="leave these layers as they are: conv1,conv2")
    add("--lr-multiplier", metavar="RATES", help="such as fc8=10: multiply rates of layers")
    add("--no-graph", action="store_true",
        help="on a GPU, launch each kernel by itself instead of replaying a recording")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda:0, or auto (default): a GPU if one works")
    add("--precision", choices=PRECISIONS, default="auto", help="fp32; tf32 or bf16: products by "
        "tensor cores, emulated on the host; auto (default): tf32 on a GPU that has it, else "
        "fp32")  # fmt: skip
    add("--kernels", choices=KERNELS, default="fast", help="fast (default); simple: every layer "
        "as its file in layers/ shows it, slower, to read and to debug")  # fmt: skip
    add("--parallel", choices=("none", "columns", "replicas"), default="none",
        help="columns: half of every layer on each of two devices, as in the paper; replicas: the "
        "whole net on each device, and a part of each batch; --device cuda:0,cuda:1")  # fmt: skip
    add("--seed", type=int, default=0, help="same seed, same machine: same weights, to the bit")
    add("--out", metavar="FOLDER", help="new folder for the results (default: runs/001, ...)")
    add("--resume", metavar="FOLDER", help="resume the run in this folder, with its options")
    add("--checkpoint-minutes", type=float, default=10, help="time between checkpoints (default "
        "10); one is written after every epoch as well")  # fmt: skip
    add("--checkpoint-steps", type=int, help="steps between checkpoints, instead of minutes")
    add("--watch", type=int, nargs="?", const=8127, metavar="PORT",
        help="serve the report page on 127.0.0.1, anew after each epoch (port 8127)")  # fmt: skip
    add("--tensorboard", action="store_true", help="write event files for TensorBoard")
    add("--overfit-one-batch", action="store_true",
        help="only test whether the net can memorize a single batch (default --lr here: "
        f"{OVERFIT_LR}, since dropout is off)")  # fmt: skip
    unset = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([]))))
    marked = vars(parser.parse_args(arguments, unset))
    given = {name: value for name, value in marked.items() if value is not None}
    options = parser.parse_args(arguments)
    if options.overfit_one_batch:
        options.lr = given.get("lr", OVERFIT_LR)
    return options, given


def complete(options: argparse.Namespace, device: Device) -> None:
    """Fill in what depends on the device and on other options, so that run.json says it all."""
    settled = settle_tier(options.kernels, options.precision, device, "float32")
    options.kernels, options.precision = settled
    if options.width is None:
        options.width = 1.0 if device.is_cuda else 0.25
    if options.schedule == "steps" and options.drops is None:
        options.drops = str(options.epochs - options.epochs // 3 + 1)


def make_schedule(options: argparse.Namespace) -> Schedule:
    """The schedule that --schedule, --drops and --patience ask for; ValueError for nonsense."""
    if options.schedule == "plateau":
        return Plateau(options.patience)
    if options.schedule == "constant":
        return Schedule()
    try:
        return Steps([int(epoch) for epoch in options.drops.split(",")])
    except ValueError:
        raise ValueError(
            f"--drops must be rising numbers of epochs such as 23,51,78, not {options.drops!r}"
        ) from None


def describe(options: argparse.Namespace, data: Data, net: Sequential) -> dict[str, Any]:
    """What a checkpoint has to agree with: network, recipe, data, and every choice of the run."""
    recipe = MODELS[options.model].recipe(options.recipe)
    named = {} if options.model == "alexnet" else {"model": options.model}
    names = "init_from", "freeze", "lr_multiplier"
    tuning = {name: value for name in names if (value := getattr(options, name))}
    return (
        named
        | tuning
        | {
            "width": options.width,
            "image_size": options.image_size,
            "input_divisor": recipe.input_divisor,
            "recipe": asdict(recipe),
            "class_ids": data.class_ids,
            "class_names": data.class_names,
            "training photos": data.train.fingerprint(),
            "validation photos": data.val.fingerprint(),
            "batch_size": options.batch_size,
            "lr": options.lr,
            "schedule": make_schedule(options).describe(),
            "seed": options.seed,
            "precision": net.precision,
            "kernels": net.kernels,
            "network": net.table(computed=False).splitlines(),
            "versions": {name: version(name) for name in ("tinyconv", "numpy", "numba", "h5py")},
        }
    )


def resumed(options: argparse.Namespace, given: dict[str, Any], folder: RunFolder) -> None:
    """Take the options of the run in `folder`; those given now must be the same or may change."""
    for name, value in folder.read_options().items():
        if name in given and name not in MAY_CHANGE and given[name] != value:
            raise ValueError(
                f"--resume uses the run's own options: --{name.replace('_', '-')} is {value!r} "
                f"there, not {given[name]!r}"
            )
        if name not in given:
            setattr(options, name, value)
    options.anew = {name: value for name, value in given.items() if name != "resume"}
    if "epochs" in given and options.schedule == "steps":
        print(f"note: the learning rate drops before epoch {options.drops}, as this run began")


def resume_command(options: argparse.Namespace, folder: Path) -> str:
    """The command that resumes this run, in the way in which it was started."""
    words = ["--resume", str(folder)]
    for option, value in getattr(options, "anew", {}).items():
        words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    return f"{commands.train()} {shlex.join(words)}"
