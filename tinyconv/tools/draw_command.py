"""`python -m tinyconv draw`: the net as a picture, and what crosses between its two devices.

    python -m tinyconv draw --out net.svg
    python -m tinyconv draw --parallel columns --recipe authors --out two_columns.svg
    python -m tinyconv draw --filters runs/001 --out filters.png
    python -m tinyconv draw --pictures --out pictures.svg

The first also prints the net's table, the second the bytes that the devices exchange. --filters
draws the first filters of a trained net (a run's folder or a weights file), those of column 0 above
those of column 1, and prints how colourful each column's are (paper, figure 3).
"""

import argparse
from pathlib import Path

from tinyconv.alexnet import alexnet
from tinyconv.parallel.columns import Columns
from tinyconv.parallel.stage import COLUMNS
from tinyconv.recipes import RECIPES
from tinyconv.run.checkpoint import load_model
from tinyconv.run.filters import colourfulness
from tinyconv.run.plots import plot_column_filters
from tinyconv.run.sealed import replace_file
from tinyconv.tools.draw_net import svg_of_net
from tinyconv.tools.draw_pictures import svg_of_pictures


def crossing_table(net: Columns, batch_size: int = 128) -> str:
    """A text table of what one device sends to the other in training. ValueError: no input_shape.

    Columns: bytes of one image in the forward pass, from column 0 and from column 1; bytes of one
    step, both passes and both directions. The backward pass returns as many bytes, except for the
    photos, which are sent as uint8 with the margin for random crops.
    """
    if net.input_shape is None:
        raise ValueError("draw: this net has no input_shape; give it to Sequential")
    side = round(net.input_shape[0] * 256 / 224)
    photos = side * side * net.input_shape[2]
    size = net.dtype.itemsize
    lines = [("", "from column 0", "from column 1", f"a step of {batch_size}")]
    all_first, all_second, all_step = photos, 0, batch_size * photos
    lines.append(("photos", f"{photos:,}", "0", f"{all_step:,}"))
    for name, first, second in net.crossings()[1:]:
        first, second = size * first, size * second
        step = 2 * batch_size * (first + second)
        lines.append((_in_words(name), f"{first:,}", f"{second:,}", f"{step:,}"))
        all_first, all_second, all_step = all_first + first, all_second + second, all_step + step
    lines.append(("in all", f"{all_first:,}", f"{all_second:,}", f"{all_step:,}"))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join((line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in (1, 2, 3))))
        for line in lines
    )


def _in_words(name: str) -> str:
    """The first cell of a row: what crosses, or before which layer."""
    if name == "gather":
        return "logits, for the loss"
    return name.replace("all_gather_", "before ").replace("norm", "border of norm")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--parallel", choices=("none", "columns"), default="none", help="columns: on two devices")
    add("--width", type=float, default=1.0, help="relative to the paper's (default 1)")
    add("--classes", type=int, default=1000, help="default 1000")
    add("--image-size", type=int, default=224, help="side of the crop (default 224)")
    add("--recipe", choices=RECIPES, default="paper", help="default paper")
    add("--batch-size", type=int, default=128, help="images per step, for the table (default 128)")
    add("--filters", metavar="WEIGHTS.h5", help="draw the first filters of a trained net as a PNG")
    add("--pictures", action="store_true", help="draw a sheet of drawn training pictures")
    add("--out", metavar="FILE", help="default: net.svg, filters.png or pictures.svg")


def main(chosen: argparse.Namespace) -> int:
    """Write the picture and print its table; ValueError for unusable arguments."""
    if chosen.pictures and chosen.filters:
        raise ValueError("--pictures and --filters are two pictures: give one")
    name = "filters.png" if chosen.filters else "pictures.svg" if chosen.pictures else "net.svg"
    out = Path(chosen.out or name)
    ending = ".png" if chosen.filters else ".svg"
    if out.suffix != ending:
        raise ValueError(f"--out {out}: this picture is a {ending} file")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {str(out.parent)!r}")
    if chosen.filters:
        _draw_filters(chosen.filters, out)
    elif chosen.pictures:
        replace_file(out, svg_of_pictures().encode())
    else:
        _draw_net(chosen, out)
    print(f"written: {out}")
    return 0


def _draw_filters(weights: str, out: Path) -> None:
    model = load_model(weights)
    weight = model.net["conv1"].weight.value  # type: ignore[attr-defined]
    plot_column_filters(weight, out)
    share, middle = colourfulness(weight), weight.shape[0] - weight.shape[0] // 2
    for column, part in zip(COLUMNS, (share[:middle], share[middle:]), strict=True):
        print(
            f"column {column}: {len(part)} filters, colourfulness {part.mean():.1%} on average, "
            f"from {part.min():.1%} to {part.max():.1%}"
        )


def _draw_net(chosen: argparse.Namespace, out: Path) -> None:
    if chosen.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {chosen.batch_size}")
    net = alexnet(chosen.classes, chosen.width, chosen.image_size, chosen.recipe)
    if chosen.parallel == "columns":
        columns = Columns(net)
        replace_file(out, svg_of_net(columns).encode())
        print("bytes between the devices, per image and per step")
        print(crossing_table(columns, chosen.batch_size))
    else:
        replace_file(out, svg_of_net(net).encode())
        print(net)
