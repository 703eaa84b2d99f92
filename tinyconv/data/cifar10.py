"""CIFAR-10 in its binary form: 60,000 pictures of 32×32 pixels in six files.

    data_batch_1.bin ... data_batch_5.bin     training
    test_batch.bin                            validation
    batches.meta.txt                          the names of the ten classes, one per line

A record is 3073 bytes: the label, then 1024 bytes each of red, green and blue, row by row.
"""

from __future__ import annotations

from pathlib import Path

from tinyconv.data.listing import Listing, Photo, SourceError, quoted
from tinyconv.data.trees import Tree

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
BATCHES = {
    **{f"data_batch_{number}.bin": "train" for number in range(1, 6)},
    "test_batch.bin": "val",
}
NAMES = "batches.meta.txt"


def list_cifar10(tree: Tree, source: Path) -> Listing | None:
    """The data set, if `tree` has its files or folder, and None if it is something else.

    SourceError for the versions for Python and MATLAB, and for files that are damaged.
    """
    inner = [name for name in tree.folders if name.startswith("cifar-10-batches-")]  # -bin first
    files = (tree.below(inner[0]) if inner else tree).top()
    if {"data_batch_1", "data_batch_1.mat"} & set(files):
        raise SourceError(
            f"{quoted(source)} is CIFAR-10 for Python or MATLAB; give the binary version, "
            "cifar-10-binary.tar.gz"
        )
    if "data_batch_1.bin" not in files:
        return None
    if missing := [name for name in (*BATCHES, NAMES) if name not in files]:
        raise SourceError(f"{quoted(source)} lacks {missing[0]}: unpack or download it again")
    lines = files[NAMES].read().decode("utf-8", "replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    photos = []
    for batch, split in BATCHES.items():
        content = files[batch].read()
        if not content or len(content) % RECORD:
            raise SourceError(
                f"{quoted(source)}: {batch} has {len(content):,} bytes, which is not a multiple of "
                f"{RECORD}: it is truncated, download it again"
            )
        labels = content[::RECORD]
        if max(labels) >= len(names):
            raise SourceError(
                f"{quoted(source)}: {batch} has a label {max(labels)}, and {NAMES} has "
                f"{len(names)} names"
            )
        for row, label in enumerate(labels):
            place = files[batch].offset + row * RECORD + 1
            found = files[batch]._replace(
                name=f"{batch} {row}", offset=place, size=RECORD - 1, planes=True
            )
            photos.append(Photo(split, label, found))
    return Listing("CIFAR-10 binary", source.name, names, names, photos, SIDE)
