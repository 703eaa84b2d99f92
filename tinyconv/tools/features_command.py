"""Write the vectors that a layer of a trained net computes for each photo into an HDF5 file.

    python -m tinyconv features runs/001 fc7.h5 --data imagenet.h5
    python -m tinyconv features runs/001 conv5.h5 --data photos --layer conv5 --split train

The file holds `features` (N, values) float32, `labels` (N) and `class_names`. Near vectors
belong to photos that the net sees as alike (paper, figure 4).
"""

import argparse

import h5py
import numpy as np

from layers import Device
from tinyconv.data.open_data import open_data
from tinyconv.run.features import features
from tinyconv.tools.ensemble import load_member


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, weights.h5, or a checkpoint")
    add("out", metavar="OUT.h5", help="the file to write")
    add("--data", metavar="PATH", help="folder or prepared file (default: drawn pictures)")
    add("--layer", default="fc7", help="by its name in print(net) (default fc7)")
    add("--split", choices=("train", "val"), default="val", help="default val")
    add("--device", default="auto", help="cpu, cuda:0, or auto (default)")


def main(options: argparse.Namespace) -> int:
    """Write the file; returns 0."""
    member = load_member(options.run, Device(options.device))
    if options.layer not in (names := [each.name for each in member.net]):
        raise ValueError(f"no layer {options.layer!r}; there are {', '.join(names)}")
    with open_data(options.data, member.size) as data:
        photos = data.train if options.split == "train" else data.val
        found = features(member.net, photos, member.augment, options.layer)
        found = found.reshape(len(found), -1)
        labels, names = np.asarray(photos.labels), list(data.class_names)
    with h5py.File(options.out, "w") as file:
        file.create_dataset("features", data=found)
        file.create_dataset("labels", data=labels)
        file.create_dataset("class_names", data=names)
    print(f"{options.out}: {len(found):,} vectors of {found.shape[1]:,} numbers, {options.layer}")
    return 0
