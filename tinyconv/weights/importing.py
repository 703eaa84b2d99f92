"""`python -m tinyconv import FILE RUN`: weights of other programs as a run's folder.

    python -m tinyconv import alexnet.safetensors runs/imported
    python -m tinyconv import alexnet-owt-7be5be79.pth runs/torchvision --classes names.txt
    python -m tinyconv import bvlc_alexnet.caffemodel runs/caffe --mean imagenet_mean.binaryproto

FILE: .safetensors or .npz of `python -m tinyconv export`; torchvision's AlexNet as .safetensors, or
as .pth, which needs PyTorch; Caffe's bvlc_alexnet or bvlc_reference_caffenet as .caffemodel, with
its mean image. RUN is a new folder; evaluate, predict, report and --init-from take it like one that
was trained here. --classes is a text file with a class a line, where FILE does not name them. No
pickle is executed.
"""

import argparse
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyconv.alexnet import UNITS
from tinyconv.recipes import Recipe
from tinyconv.run.layer_table import net_of_table
from tinyconv.run.models import ONE_COLUMN
from tinyconv.weights.caffe import caffe_net, read_caffemodel, read_mean
from tinyconv.weights.export import missing_extra
from tinyconv.weights.layouts import placed, put
from tinyconv.weights.model import Model, save_model

IMAGENET_MEAN = 0.485, 0.456, 0.406
IMAGENET_STD = 0.229, 0.224, 0.225
"""Of red, green and blue on the scale 0 to 1: what torchvision's weights expect."""

SPREAD = 255 * sum(IMAGENET_STD) / 3
"""The divisor of an imported torchvision net: one for all colours, as everywhere here."""


def read(
    path: str | Path, mean: str | Path | None = None, classes: list[str] | None = None
) -> Model:
    """The net in a file of another program, on the host.

    mean: Caffe's mean.binaryproto; classes: their names, where the file has none. ValueError says
    what was found and what was expected.
    """
    path = Path(path)
    content = path.read_bytes()
    ending = path.suffix.lower()
    if mean is not None and ending != ".caffemodel":
        raise ValueError(f"--mean is for .caffemodel; {path} is {ending or 'without an ending'}")
    if ending == ".npz":
        return _of_npz(content, path)
    if ending == ".caffemodel":
        if mean is None:
            raise ValueError(f"{path}: add --mean with its mean image, such as mean.binaryproto")
        return _of_caffe(content, path, read_mean(Path(mean).read_bytes(), mean), classes)
    if ending == ".safetensors":
        tensors, stored = _safetensors(content, path)
        if stored is not None:
            return _of_own(tensors, stored, path)
        return _of_torchvision(tensors, path, classes)
    if ending in (".pth", ".pt"):
        return _of_torchvision(_torch_file(path), path, classes)
    raise ValueError(
        f"{path}: import reads .safetensors, .npz, .pth and .caffemodel, by the ending of the name"
    )


# --- formats: name -> array


def _safetensors(content: bytes, path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """The tensors, and the settings in the metadata of our own files."""
    try:
        from safetensors.numpy import load
    except ImportError:
        raise missing_extra("safetensors") from None
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        return tensors, json.loads(header["tinyconv"]) if "tinyconv" in header else None
    except Exception as error:  # of the library, or a damaged header
        raise ValueError(f"{path}: not a safetensors file ({error})") from None


def _torch_file(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path}: a .pth file needs PyTorch: pip install torch, or convert it to .safetensors"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle with code, or no pickle
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: torch.load(weights_only=True) refuses it: {reason}") from None
    if not isinstance(state, Mapping) or not all(hasattr(x, "numpy") for x in state.values()):
        raise ValueError(f"{path}: holds a {type(state).__name__}, expected a state_dict")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


# --- nets


def _own_net(stored: Any, path: Path) -> tuple[Any, float]:
    try:
        net = net_of_table(stored["layers"], stored["input_shape"])
        return net, Recipe(**stored["recipe"]).input_divisor
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its settings are damaged ({error})") from None


def _model(net: Any, mean: np.ndarray, stored: Any, divisor: float, path: Path) -> Model:
    kept = {key: value for key, value in stored.items() if key != "mean"}
    try:
        ids = stored.get("class_ids")
        return Model(net, mean, stored["class_names"], divisor, ids, kept)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _of_own(tensors: dict[str, np.ndarray], stored: Any, path: Path) -> Model:
    net, divisor = _own_net(stored, path)
    _fill(net, tensors, path, also={"mean_image"})
    return _model(net, np.moveaxis(tensors["mean_image"], 0, -1), stored, divisor, path)


def _of_npz(content: bytes, path: Path) -> Model:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an .npz of tinyconv ({error})") from None
    if "tinyconv" not in arrays or "mean_image" not in arrays:
        raise ValueError(f"{path}: has no tinyconv and mean_image; expected a file of `export`")
    stored = json.loads(arrays["tinyconv"].tobytes())
    net, divisor = _own_net(stored, path)
    for parameter in net.parameters():
        found = arrays.get(parameter.name)
        if found is None or found.shape != parameter.value.shape:
            shape = "missing" if found is None else f"{found.shape}"
            raise ValueError(
                f"{path}: {parameter.name} is {shape}, the net has {parameter.value.shape}"
            )
        parameter.value[...] = found
    return _model(net, arrays["mean_image"], stored, divisor, path)


def _of_torchvision(tensors: dict[str, np.ndarray], path: Path, classes: list[str] | None) -> Model:
    """x = (pixel / 255 − mean) / std has a divisor for each colour: conv1's filters take it."""
    first, last = tensors.get("features.0.weight"), tensors.get("classifier.6.weight")
    if first is None or last is None or last.ndim != 2 or first.shape[1:] != (3, 11, 11):
        found = ", ".join(f"{name} {array.shape}" for name, array in list(tensors.items())[:3])
        raise ValueError(
            f"{path}: begins with {found or 'nothing'}; expected torchvision's AlexNet, "
            "features.0.weight (64, 3, 11, 11) to classifier.6.weight (1000, 4096)"
        )
    names = _names(classes, len(last), path)
    width = last.shape[-1] / UNITS["one-column"][-1]
    net = ONE_COLUMN(len(last), width, init=False)
    _fill(net, tensors, path)
    scale = SPREAD / (255 * np.array(IMAGENET_STD))
    net["conv1"].parameters()[0].value *= scale.astype(np.float32)
    mean = np.broadcast_to(255 * np.array(IMAGENET_MEAN, np.float32), (256, 256, 3))
    return Model(net, mean, names, SPREAD)


def _of_caffe(content: bytes, path: Path, mean: np.ndarray, classes: list[str] | None) -> Model:
    """Blobs by layer name; conv1 sees blue, green, red."""
    blobs = read_caffemodel(content, path)
    expected = [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    missing = [name for name in expected if len(blobs.get(name, ())) != 2]
    if missing:
        found = ", ".join(name for name, weights in blobs.items() if weights)
        raise ValueError(
            f"{path}: has {found}; expected AlexNet's conv1 to conv5 and fc6 to fc8, "
            f"with weights and biases ({missing[0]} is missing)"
        )
    outputs = blobs["fc8"][1].size
    crop = 227 if len(mean) >= 227 else len(mean)
    order = [name for name in blobs if name in ("pool1", "norm1")]
    net = caffe_net(outputs, blobs["conv1"][1].size / 96, crop, order == ["pool1", "norm1"])
    tensors: dict[str, np.ndarray] = {}
    for each in placed(net):
        weight, bias = blobs[each.layer.name]
        if weight.ndim == 4 and weight.shape[:2] == (1, 1):  # old files: (1, 1, out, in)
            weight = weight[0, 0]
        if each.layer.name == "conv1":
            weight = weight[:, ::-1]
        tensors |= {f"{each.name}.weight": weight, f"{each.name}.bias": bias.reshape(-1)}
    _fill(net, tensors, path)
    return Model(net, mean, _names(classes, outputs, path))


def _fill(
    net: Any, tensors: dict[str, np.ndarray], path: Path, also: frozenset | set = frozenset()
) -> None:
    """Every weight of `net` from arrays by PyTorch's names; ValueError names what is different."""
    expected = set(also)
    for each in placed(net):
        names = f"{each.name}.weight", f"{each.name}.bias"
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"{path}: {missing[0]} ({each.layer.name}) is missing")
        try:
            put(each, *(np.asarray(tensors[name], np.float32) for name in names))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        expected |= set(names)
    if others := (set(also) - set(tensors)) | (set(tensors) - expected):
        raise ValueError(f"{path}: {min(others)} is missing, or is not of this net")


def _names(classes: list[str] | None, count: int, path: Path) -> list[str]:
    if classes is None:
        return [f"class {i}" for i in range(count)]
    if len(classes) != count:
        raise ValueError(f"--classes has {len(classes)} lines, and {path} has {count} classes")
    return classes


# --- command


def options(parser: argparse.ArgumentParser) -> None:
    """What `import` takes on the command line."""
    add = parser.add_argument
    add("file", metavar="FILE", help=".safetensors, .npz, .pth or .caffemodel")
    add("run", metavar="RUN", help="new folder for weights.h5")
    add("--mean", metavar="FILE", help="Caffe's mean image, a .binaryproto")
    add("--classes", metavar="FILE", help="text file with the name of a class on each line")


def main(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    folder = Path(options.run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; name a new folder")
    classes = None
    if options.classes:
        classes = Path(options.classes).read_text(encoding="utf-8").splitlines()
    model = read(options.file, options.mean, classes)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "weights.h5", model)
    print(f"{folder / 'weights.h5'}: {model!r}")
    return 0
