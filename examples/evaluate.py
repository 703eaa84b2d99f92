"""Evaluate trained nets: top-1 and top-5 on a data set, or predictions for single photos.

    python examples/evaluate.py runs/001 --data photos
    python examples/evaluate.py runs/001 runs/002 runs/003 --data imagenet.h5 --per-class
    python examples/evaluate.py runs/001 --predict cat.jpg dog.png

A net is the folder of a run (its best checkpoint), a checkpoint, or weights.h5. Several nets are
evaluated one by one, and their average. --data is a folder with val/<class>/ (or test/<class>/), or
a file made by `python -m tinyconv prepare`, with the classes of the nets. The views of a photo
are its centre crop, or ten crops: corners, centre, and their mirror images.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from layers import Device, DeviceError
from layers.fast.plan import KERNELS
from layers.fast.precision import PRECISIONS, described
from tinyconv.data.bar import tqdm
from tinyconv.data.folder import read_folder
from tinyconv.data.listing import printable, quoted
from tinyconv.data.photos import PhotoError
from tinyconv.data.sources import Options
from tinyconv.data.store import PhotoStore
from tinyconv.run.first_use import compilation_announced
from tinyconv.run.sealed import replace_file
from tinyconv.sequential import settle_tier
from tinyconv.tools.ensemble import (
    Member,
    check_members,
    evaluate_members,
    first_other_class,
    load_member,
    predict,
)
from tinyconv.tools.evaluate_report import (
    TITLES,
    accuracy_table,
    class_scores,
    class_table,
    classes_json,
    results_json,
    together,
)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("nets", nargs="+", metavar="NET", help="folder of a run, checkpoint, or weights.h5")
    add("--data", metavar="PATH", help="folder {train,val}/<class>/, or a prepared .h5 file")
    add(
        "--split", choices=("val", "train"), default="val", help="which of its photos (default val)"
    )
    add("--val-share", type=float, metavar="SHARE", help="of a folder <class>/, as in training")
    add("--seed", type=int, default=0, help="of that share, as in training (default 0)")
    add("--views", choices=("centre", "ten", "both"), default="both", help="of each photo (both)")
    add("--per-class", action="store_true", help="print a line for each class, the worst first")
    add("--paper", action="store_true", help="print the paper's results, too")
    add("--predict", nargs="+", default=[], metavar="PHOTO", help="print the five most "
        "probable classes of each photo, from ten views unless --views is centre")  # fmt: skip
    add("--json", metavar="FILE", help="write all results as JSON; - prints JSON instead of "
        "the tables")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda:0, or auto (default): a GPU if one works")
    add("--precision", choices=PRECISIONS, default="auto", help="fp32, tf32 or bf16; auto "
        "(default): tf32 on a GPU that supports it, else fp32")  # fmt: skip
    add("--kernels", choices=KERNELS, default="fast", help="fast (default), or simple: the "
        "kernels in layers/*.py")  # fmt: skip
    add("--batch-size", type=int, default=64, help="crops per forward pass (default 64)")
    options = parser.parse_args(arguments)
    if options.data is None and not options.predict:
        parser.error("nothing to evaluate: give --data PATH or --predict PHOTO")
    return options


def evaluating(batches: Any, total: int) -> Any:
    return tqdm(batches, total=total, desc="evaluating", unit="batch", disable=None)


def decoding(photos: Any, total: int) -> Any:
    return tqdm(photos, total=total, desc="decoding", unit="photo", disable=None)


def open_photos(
    options: argparse.Namespace, members: list[Member], stack: ExitStack
) -> tuple[dict[int, Any], list[str]]:
    """The photos by the sizes that the nets need, and the ids of their classes."""
    sizes = sorted({member.size for member in members})
    if Path(options.data).is_file():
        store = stack.enter_context(PhotoStore(options.data))
        for member in members:
            if member.size != store.size:
                raise ValueError(
                    f"{options.data} has squares of {store.size} pixels, but {member.name} was "
                    f"trained on {member.size}: prepare a file of that size"
                )
        return {store.size: getattr(store, options.split)}, list(store.class_ids)
    photos, ids, skipped = {}, [], []
    layout = Options(val_share=options.val_share, seed=options.seed, splits=(options.split,))
    for size in sizes:
        train, val, skipped = read_folder(options.data, size, options=layout, progress=decoding)
        photos[size] = train if options.split == "train" else val
        ids = list(train.class_names)
    for each in skipped:
        print(f"skipped {each}", file=sys.stderr)
    return photos, ids


def evaluate_data(
    options: argparse.Namespace, members: list[Member], say: Callable[[str], None]
) -> dict[str, Any]:
    """Print the tables; returns the values for the JSON."""
    first = members[0]
    with ExitStack() as stack:
        photos, ids = open_photos(options, members, stack)
        if difference := first_other_class(first.name, first.class_ids, options.data, ids):
            raise ValueError(f"{difference}: the nets were trained on other classes")
        views = ("centre", "ten") if options.views == "both" else (options.views,)
        count = len(photos[first.size])
        say(f"data: {options.data}, {count:,} photos of {options.split}, {len(ids)} classes\n")
        started = time.perf_counter()
        rows = evaluate_members(members, photos, views, options.batch_size, evaluating)
        seconds = time.perf_counter() - started
    say(accuracy_table(rows, len(members), options.paper))
    scores = class_scores(rows[-1].tally, len(ids))
    if options.per_class:
        who = rows[-1].name or together(len(members))
        say(f"\nby class: {who}, {TITLES[rows[-1].views]}")
        say(class_table(scores, first.class_names))
    say(f"\n{count:,} photos in {seconds:,.1f} s: {count / seconds:,.1f} images/s")
    return {
        "data": options.data,
        "split": options.split,
        "photos": count,
        "seconds": seconds,
        "results": results_json(rows),
        "classes": classes_json(scores, ids, first.class_names),
    }


def predict_photos(
    options: argparse.Namespace, members: list[Member], say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], int]:
    """Print the most probable classes of each photo; returns them, and the number of failures."""
    names, found, failed = members[0].class_names, [], 0
    views = "centre" if options.views == "centre" else "ten"
    for photo in options.predict:
        try:
            likeliest = predict(members, photo, views)
        except PhotoError as error:
            print(f"evaluate.py: cannot use {quoted(photo)}: {error}", file=sys.stderr)
            found.append({"photo": photo, "error": str(error)})
            failed += 1
            continue
        say(f"\n{quoted(photo)}")
        for label, probability in likeliest:
            say(f"  {probability:6.1%}  {printable(names[label])}")
        classes = [
            {"id": members[0].class_ids[label], "name": names[label], "probability": probability}
            for label, probability in likeliest
        ]
        found.append({"photo": photo, "classes": classes})
    return found, failed


def run(options: argparse.Namespace) -> int:
    def say(text: str) -> None:
        if options.json != "-":
            print(text)

    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        raise ValueError(f"--json {options.json}: there is no such folder")
    device = Device(options.device).use()
    kernels, precision = settle_tier(options.kernels, options.precision, device, "float32")
    say(f"device: {device}\nprecision: {described(precision, device)}")
    members = [load_member(path, device, precision, kernels) for path in options.nets]
    check_members(members)
    result: dict[str, Any] = {
        "nets": options.nets,
        "device": str(device),
        "precision": precision,
        "kernels": kernels,
    }
    failed = 0
    if options.data is not None:
        result |= evaluate_data(options, members, say)
    if options.predict:
        result["predictions"], failed = predict_photos(options, members, say)
    if options.json == "-":
        print(json.dumps(result, indent=1))
    elif options.json is not None:
        replace_file(options.json, json.dumps(result, indent=1).encode() + b"\n")
    return 2 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return run(options)
    except BrokenPipeError:
        # The reader is closed (`| head`); the flush at interpreter exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DeviceError, ValueError, OSError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("evaluate.py: error: not enough memory; try a smaller --batch-size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    with compilation_announced():
        sys.exit(main())
