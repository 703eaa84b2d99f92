"""`python -m tinyconv predict PHOTO…`: what a trained net sees in photos.

    python -m tinyconv predict cat.jpg dog.png
    python -m tinyconv predict cat.jpg --net runs/001 --views ten
    python -m tinyconv predict *.jpg --features fc7 --out vectors.npz

Without --net the small net in the package answers: ten classes of ImageNet. --features writes the
vectors of a layer (arrays `vectors` and `names`) in place of the classes.
"""

import argparse
import io
import sys

import numpy as np

from tinyconv.data.photos import PhotoError
from tinyconv.run.sealed import replace_file
from tinyconv.weights.model import load_model


def options(parser: argparse.ArgumentParser) -> None:
    """What `predict` takes on the command line."""
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="image files")
    add("--net", metavar="NET", help="folder of a run, checkpoint, or weights.h5")
    add("--views", choices=("centre", "ten"), default="centre", help="of each photo (centre)")
    add("--features", metavar="LAYER", help="write the vectors of this layer, such as fc7")
    add("--out", metavar="FILE", default="features.npz", help="for --features (features.npz)")
    add("--device", default="cpu", help="cpu (default), cuda:0, or auto")


def main(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    model = load_model(options.net, options.device)
    read, names, failed = [], [], 0
    for photo in options.photos:
        try:
            read.append(model.squares(photo))
            names.append(photo)
        except PhotoError as error:
            print(f"tinyconv predict: cannot use {error}", file=sys.stderr)
            failed += 1
    if not read:
        return 2
    squares = np.concatenate(read)
    if options.features:
        try:
            vectors = model.features(squares, options.features)
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        memory = io.BytesIO()
        np.savez(memory, vectors=vectors, names=np.array(names))
        replace_file(options.out, memory.getvalue())
        print(f"{options.out}: {options.features} of {len(names)} photo(s), {vectors.shape}")
    else:
        for name, classes in zip(names, model.predict(squares, views=options.views), strict=True):
            print(f"\n{name!r}")
            for class_name, probability in classes:
                print(f"  {probability:6.1%}  {class_name}")
    return 2 if failed else 0
