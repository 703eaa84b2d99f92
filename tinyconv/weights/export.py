"""`python -m tinyconv export NET OUT`: trained weights for other programs.

    python -m tinyconv export runs/001 alexnet.safetensors
    python -m tinyconv export runs/001 alexnet.onnx --with-mean
    python -m tinyconv export runs/001 alexnet.npz
    python -m tinyconv export packaged small.onnx        # the small net in the package

The ending of OUT selects the format. safetensors: PyTorch's layout and names (features.0.weight),
mean_image (3, S, S), and in its metadata "tinyconv" mean, divisor, classes and recipe as JSON.
onnx: a graph from x (N, 3, H, W) to logits and probabilities; with --with-mean its input are RGB
pixels from 0 to 255, and it subtracts the mean. npz: the layout of tinyconv, for NumPy.
`python -m tinyconv import` reads the first and the last back to the same bits.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from layers import Device
from tinyconv.run.sealed import replace_file
from tinyconv.weights.layouts import channels_first, placed
from tinyconv.weights.model import Model, load_model, settings_of

ENDINGS = ".safetensors", ".onnx", ".npz"


def missing_extra(package: str) -> ValueError:
    """The error for a package that is not installed, and the extra that has it."""
    return ValueError(f"{package} is not installed: pip install -e '.[export]'")


def export(model: Model, path: str | Path, with_mean: bool = False) -> None:
    """Write `model` to `path` in the format of its ending.

    with_mean: for .onnx, whether the graph subtracts the mean itself. ValueError for another
    ending, a missing package, or a layer without a counterpart.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path}: export writes {', '.join(ENDINGS)}, by the ending of the name")
    if with_mean and ending != ".onnx":
        raise ValueError(f"--with-mean is for .onnx; {ending} holds the mean image in any case")
    if ending == ".onnx":
        try:
            from tinyconv.weights.onnx_graph import onnx_bytes
        except ImportError:
            raise missing_extra("onnx") from None
        content = onnx_bytes(model, with_mean)
    else:
        content = _safetensors(model) if ending == ".safetensors" else _npz(model)
    replace_file(path, content)


def metadata_of(model: Model) -> dict[str, Any]:
    """What a file says besides the weights: the settings, and the mean of each colour."""
    return {**settings_of(model), "mean": model.mean_image.mean(axis=(0, 1)).tolist()}


def _safetensors(model: Model) -> bytes:
    try:
        from safetensors.numpy import save
    except ImportError:
        raise missing_extra("safetensors") from None
    tensors = {"mean_image": np.ascontiguousarray(np.moveaxis(model.mean_image, -1, 0))}
    for each in placed(model.net):
        weight, bias = channels_first(each)
        tensors |= {f"{each.name}.weight": weight, f"{each.name}.bias": bias}
    return save(tensors, {"tinyconv": json.dumps(metadata_of(model)), "format": "pt"})


def _npz(model: Model) -> bytes:
    arrays: dict[str, Any] = {
        p.name: np.array(Device.to_host(p.value)) for p in model.net.parameters()
    }
    arrays["mean_image"] = model.mean_image
    arrays["tinyconv"] = np.frombuffer(json.dumps(metadata_of(model)).encode(), np.uint8)
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    return memory.getvalue()


def options(parser: argparse.ArgumentParser) -> None:
    """What `export` takes on the command line."""
    parser.add_argument(
        "net", metavar="NET", help="folder of a run, checkpoint, weights.h5, or packaged"
    )
    parser.add_argument("out", metavar="OUT", help="new file: .safetensors, .onnx or .npz")
    parser.add_argument(
        "--with-mean", action="store_true", help=".onnx: its input are RGB pixels from 0 to 255"
    )


def main(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    export(load_model(options.net), options.out, options.with_mean)
    print(f"{options.out}: {Path(options.out).stat().st_size / 2**20:,.1f} MiB")
    return 0
