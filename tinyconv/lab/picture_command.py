"""`python -m tinyconv draw-kernel NAME`: a page, or a picture, of what kernels do to memory.

The page is one file that needs no network: a browser opens it from the disk. An existing file is
overwritten, for it can be made anew from the kernels at any time. `steps.py` says what a step is.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path

from tinyconv.lab.picture import DRAWN, launches, page_data
from tinyconv.lab.picture_svg import svg_of
from tinyconv.lab.steps import Launch
from tinyconv.lab.subjects import KERNELS, SHAPES, checked_shape

SIGHTS: dict[str, tuple[str, int, int]] = {
    "conv_forward_kernel": ("conv", 0, 2),
    "conv_input_gradient_kernel": ("conv", 0, 1),
    "conv_filter_gradient_kernel": ("conv", 0, 1),
    "shared_forward_kernel": ("shared", 0, 4),
    "shared_input_gradient_kernel": ("shared", 0, 5),
    "shared_filter_gradient_kernel": ("shared", 0, 1),
    "conv_bias_gradient_kernel": ("conv", 0, 2),
    "tiled_forward_vectorized_kernel": ("tiled", 0, 14),
    "tiled_forward_scalar_kernel": ("tiled", 0, 14),
    "flip_filters_kernel": ("tiled", 0, 0),
    "tiled_filter_vectorized_kernel": ("tiled", 0, 6),
    "tiled_filter_scalar_kernel": ("tiled", 0, 1),
    "tensor_forward_128x128_tf32_kernel": ("tensor_tf32", 0, 8),
    "tensor_forward_128x64_tf32_kernel": ("tensor_tf32", 0, 0),
    "tensor_forward_128x128_bf16_kernel": ("tensor_bf16", 0, 47),
    "tensor_forward_128x64_bf16_kernel": ("tensor_bf16", 0, 27),
    "tensor_filter_128x128_tf32_kernel": ("tensor_tf32", 0, 0),
    "tensor_filter_128x64_tf32_kernel": ("tensor_tf32", 0, 34),
    "tensor_filter_128x128_bf16_kernel": ("tensor_bf16", 0, 38),
    "tensor_filter_128x64_bf16_kernel": ("tensor_bf16", 0, 30),
    "image_to_s2d_kernel": ("space_to_depth", 1, 0),
    "filters_to_s2d_kernel": ("space_to_depth", 0, 0),
    "flipped_filters_s2d_kernel": ("space_to_depth", 0, 0),
    "image_from_s2d_kernel": ("space_to_depth", 1, 1),
    "filters_from_s2d_kernel": ("space_to_depth", 0, 0),
    "max_pool_forward_kernel": ("max_pool", 0, 4),
    "max_pool_backward_kernel": ("max_pool", 0, 0),
    "lrn_forward_kernel": ("lrn", 0, 2),
    "lrn_backward_kernel": ("lrn", 0, 4),
    "max_pool_rows_forward_kernel": ("max_pool_rows", 0, 3),
    "max_pool_rows_backward_kernel": ("max_pool_rows", 0, 2),
    "lrn_rows_forward_kernel": ("lrn_rows", 0, 7),
    "lrn_rows_backward_kernel": ("lrn_rows", 0, 0),
    "bias_kernel": ("linear", 0, 0),
    "bias_relu_kernel": ("linear", 0, 1),
    "bias_relu_dropout_kernel": ("linear", 0, 6),
    "masked_gradient_kernel": ("linear", 0, 2),
    "sum_rows_kernel": ("linear", 0, 0),
    "sum_parts_kernel": ("linear", 0, 0),
    "totals_kernel": ("softmax_rows", 0, 2),
    "relu_forward_kernel": ("relu", 0, 0),
    "relu_backward_kernel": ("relu", 0, 1),
    "tanh_forward_kernel": ("tanh", 0, 1),
    "tanh_backward_kernel": ("tanh", 0, 0),
    "dropout_kernel": ("dropout", 0, 1),
    "softmax_forward_kernel": ("softmax", 0, 2),
    "softmax_backward_kernel": ("softmax", 0, 0),
    "softmax_rows_kernel": ("softmax_rows", 1, 0),
    "to_bfloat16_kernel": ("bfloat16", 0, 1),
    "from_bfloat16_kernel": ("bfloat16", 0, 0),
    "sgd_kernel": ("sgd", 1, 3),
    "crop_kernel": ("crop", 0, 3),
}
"""The pictures of `docs/kernels.md`, by kernel: what to launch (its first launch is drawn), block,
step."""


def page(name: str, drawn: list[Launch]) -> str:
    """The whole page for these launches of `name`, as text: `page.html`, filled in."""
    here = Path(__file__).parent
    html, css, arrays, js = (
        (here / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page_arrays.js", "page.js")
    )
    data = json.dumps(page_data(name, drawn), ensure_ascii=False, separators=(",", ":"))
    # Inside a script nothing but "<" can end it, or open a comment.
    data = data.replace("<", "\\u003c")
    parts = {"title": escape(f"{name} · tinyconv"), "css": css, "js": arrays + js, "data": data}
    before, *pieces = html.split("{{")
    return before + "".join(
        parts[key] + rest for key, rest in (piece.split("}}", 1) for piece in pieces)
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options to `parser`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--shape", help="of the input, such as 2,3,3,6 (default: a small one)")
    parser.add_argument("--out", metavar="FILE", help="default: NAME.html, or KERNEL.svg")
    parser.add_argument("--svg", action="store_true", help="draw one step instead of the page")
    parser.add_argument("--kernel", help="with --svg: which kernel (default: the first launched)")
    parser.add_argument("--block", type=int, metavar="N", help="with --svg: which block, from 0")
    parser.add_argument("--step", type=int, metavar="N", help="with --svg: which step, from 1")
    parser.add_argument(
        "--all-pictures",
        metavar="FOLDER",
        help="write the picture of every kernel, as in docs/pictures",
    )


def main(options: argparse.Namespace) -> int:
    """Write what was asked for and say where. ValueError for what cannot be drawn."""
    still = (options.kernel, options.block, options.step)
    if options.all_pictures is not None:
        others = (options.name, options.shape, options.out, *still)
        if options.svg or any(other is not None for other in others):
            raise ValueError("--all-pictures FOLDER goes alone")
        return all_pictures(Path(options.all_pictures))
    if options.name is None:
        raise ValueError(f"a NAME is missing: one of {', '.join(SHAPES)}")
    if not options.svg and still != (None, None, None):
        raise ValueError("--kernel, --block and --step choose a picture: they need --svg")
    drawn = launches(options.name, checked_shape(options.name, options.shape))
    if options.svg:
        launch = find(options.name, drawn, options.kernel)
        name = f"{launch.trace.kernel}.svg"
        step = 1 if options.step is None else options.step
        if step < 1:
            raise ValueError(f"steps are numbered from 1, there is no step {step}")
        text = svg_of(launch, options.block or 0, step - 1)
    else:
        name, text = f"{options.name}.html", page(options.name, drawn)
    out = Path(options.out or name)
    write(out, text)
    print(f"{out}: {len(text.encode()) / 1000:.0f} kB; open it in a browser")
    return 0


def find(name: str, drawn: list[Launch], kernel: str | None) -> Launch:
    """The first of the launches, or the first of `kernel`; ValueError if there is none."""
    for launch in drawn:
        if kernel is None or launch.trace.kernel == kernel:
            return launch
    kernels = dict.fromkeys(launch.trace.kernel for launch in drawn)
    raise ValueError(f"{name} launches no {kernel}; choose from {', '.join(kernels)}")


def write(file: Path, text: str) -> None:
    """Write `text`; ValueError if that is not possible."""
    try:
        file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}") from None


def all_pictures(folder: Path) -> int:
    """Write the picture of every kernel into `folder`."""
    drawn = {name: launches(name) for name in DRAWN}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {folder}: {error.strerror}") from None
    for kernel in KERNELS:
        name, block, step = SIGHTS[kernel]
        write(folder / f"{kernel}.svg", svg_of(find(name, drawn[name], kernel), block, step))
    print(f"{folder}: {len(KERNELS)} pictures")
    return 0
