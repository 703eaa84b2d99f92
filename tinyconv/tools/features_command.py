"""Write the vectors that a layer of a trained net computes for each photo into an HDF5 file.

    python -m tinyconv features runs/001 fc7.h5 --data imagenet.h5
    python -m tinyconv features runs/001 conv5.h5 --data photos --layer conv5 --split train
    python -m tinyconv features fc7.h5 --data photos    # by the small net in the package

The file holds `features` (N, values) float32, `labels` (N) and `class_names`. Near vectors
belong to photos that the net sees as alike (paper, figure 4). `python -m tinyconv predict PHOTO
--features fc7` does it for single photos.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np

from layers import Device
from tinyconv.data.open_data import open_data
from tinyconv.run.features import features
from tinyconv.tools.ensemble import load_member


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a run's folder, weights.h5 or a checkpoint, "
        "unless the net in the package is to answer; then OUT.h5, the file to write")  # fmt: skip
    add("--data", metavar="PATH", help="folder or prepared file (default: drawn pictures)")
    add("--layer", default="fc7", help="by its name in print(net) (default fc7)")
    add("--split", choices=("train", "val"), default="val", help="default val")
    add("--device", default="auto", help="cpu, cuda:0, or auto (default)")


def main(options: argparse.Namespace) -> int:
    """Write the file; returns 0."""
    *net, out = options.paths
    if len(net) > 1:
        raise ValueError(f"takes RUN and OUT.h5, not {len(options.paths)} paths")
    if Path(out).suffix != ".h5" or (Path(out).exists() and not net):
        raise ValueError(f"{out}: name RUN, and a file to write that ends in .h5")
    member = load_member(net[0] if net else "packaged", Device(options.device).use())
    if options.layer not in (names := [each.name for each in member.net]):
        raise ValueError(f"no layer {options.layer!r}; there are {', '.join(names)}")
    with open_data(options.data, member.size) as data:
        photos = data.train if options.split == "train" else data.val
        found = features(member.net, photos, member.augment, options.layer)
        found = found.reshape(len(found), -1)
        labels, names = np.asarray(photos.labels), list(data.class_names)
    with h5py.File(out, "w") as file:
        file.create_dataset("features", data=found)
        file.create_dataset("labels", data=labels)
        file.create_dataset("class_names", data=names)
    print(f"{out}: {len(found):,} vectors of {found.shape[1]:,} numbers, {options.layer}")
    return 0
