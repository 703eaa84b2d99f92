"""`python -m tinyconv report RUN`: one page that shows what a net has learned.

    python -m tinyconv report runs/001
    python -m tinyconv report runs/001 --data photos --out report.html

Curves, first filters, accuracy by class, confusion matrix, best and worst predictions, nearest
neighbours in fc7 (paper, figure 4), time by layer, settings, and photos on their way through the
net. The page is one file without references to others. Without --data it takes the photos that the
run was trained on, if they are still there. Without RUN it shows the net in the package.
"""

import argparse
import base64
import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from layers import Conv2D, Device
from tinyconv.data.open_data import Data, open_data
from tinyconv.evaluate import likeliest
from tinyconv.run.sealed import replace_file
from tinyconv.weights.model import Model, load_model, settings_of

SHOWN, TRAINING, THUMB = 500, 2000, 72
"""Validation photos on the page; training photos among which neighbours are; pixels of a photo."""

MATRIX = 20
"""Classes in the confusion matrix, the least accurate ones of more."""

WALKS, MAPS, QUERIES, NEIGHBOURS = 4, 16, 8, 6

TEMPLATE = Path(__file__).with_name("report.html")


def page(model: Model, data: Data | None, history: list[dict], title: str, live: int = 0) -> str:
    """The HTML of the report; data: its photos, or None; live: the epoch of a run that trains.

    With `live` the page asks its server for that of a later epoch.
    ValueError if the photos are of another size or have other classes than the net.
    """
    content: dict[str, Any] = {
        "title": title,
        "live": live,
        "classes": model.class_names,
        "history": history,
        "filters": _filters(model),
        "layers": _layers(model),
        "settings": _settings(model),
    }
    if data is not None:
        _check(model, data)
        content |= _photos(model, data)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text)


def _check(model: Model, data: Data) -> None:
    if len(data.mean_image) != len(model.mean_image):
        raise ValueError(
            f"the photos have {len(data.mean_image)} pixels, the net was trained on "
            f"{len(model.mean_image)}: prepare them with --size {len(model.mean_image)}"
        )
    ids = [str(each) for each in data.class_ids]
    if ids != model.class_ids and ids != model.class_names:
        raise ValueError(f"{data.source}: its classes are not those of the net")


def _settings(model: Model) -> list[list[str]]:
    left_out = {"layers", "network", "class_names", "class_ids", "recipe", "versions"}
    stored = settings_of(model)
    rows = {key: value for key, value in stored.items() if key not in left_out}
    rows |= {"recipe": stored["recipe"]["name"], **stored.get("versions", {})}
    return [[key, json.dumps(value) if isinstance(value, dict | list) else str(value)]
            for key, value in rows.items()]  # fmt: skip


# --- pictures


def _image(pixels: np.ndarray, kind: str = "PNG") -> str:
    """uint8 pixels as a data: address."""
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, kind, **({"quality": 75} if kind == "JPEG" else {}))
    encoded = base64.b64encode(memory.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"


def _thumb(square: np.ndarray) -> str:
    small = Image.fromarray(square).resize((THUMB, THUMB), Image.Resampling.LANCZOS)
    return _image(np.asarray(small), "JPEG")


def _tiles(tiles: np.ndarray, across: int) -> np.ndarray:
    """uint8 tiles (K, H, W, ...) as one picture, a pixel apart."""
    rows = -(-len(tiles) // across)
    height, width = tiles.shape[1] + 1, tiles.shape[2] + 1
    whole = np.full((rows * height - 1, across * width - 1, *tiles.shape[3:]), 128, np.uint8)
    for i, tile in enumerate(tiles):
        row, column = i // across * height, i % across * width
        whole[row : row + height - 1, column : column + width - 1] = tile
    return whole


def _filters(model: Model) -> list[dict[str, Any]]:
    """conv1's filters, those of the two columns (groups of conv2) apart, 0 as grey."""
    first = model.net.layers[0]
    if not isinstance(first, Conv2D) or first.in_channels != 3:
        return []
    weight = Device.to_host(first.weight.value)
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    pixels = np.round(127.5 + 127.5 * weight / np.where(largest > 0, largest, 1)).astype(np.uint8)
    convs = [layer for layer in model.net if isinstance(layer, Conv2D)]
    columns = convs[1].groups if len(convs) > 1 else 1
    # Full rows where the number allows it.
    across = next((n for n in range(8, 3, -1) if len(pixels) // columns % n == 0), 8)
    return [
        {"count": len(part), "image": _image(_tiles(part, across))}
        for part in np.array_split(pixels, columns)
    ]


# --- layers and their times


def _layers(model: Model) -> list[dict[str, Any]]:
    """A row for each step: what it computes, its output, its weights, milliseconds an image."""
    net, count = model.net, 8
    x = net.device.array(np.zeros((count, *(net.input_shape or ()))), net.dtype)
    shape, rows = net.input_shape or (), []
    for step in net.steps:
        layers = [layer for layer in getattr(step, "layers", [step]) if layer in net.layers]
        adds, size = 0, 0
        for layer in layers:
            adds += layer.multiply_adds(shape)
            size += sum(p.value.size for p in layer.parameters())
            shape = layer.output_shape(shape)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            y = step.forward(x, False)
            net.device.synchronize()
            times.append(time.perf_counter() - started)
        x = y
        rows.append(
            {
                "name": step.name,
                "by": getattr(step, "short", "") or "layer",
                "shape": "×".join(map(str, shape)),
                "parameters": size,
                "adds": adds,
                "ms": round(1000 * min(times) / count, 4),
            }
        )
    return rows


# --- photos


def _photos(model: Model, data: Data) -> dict[str, Any]:
    """Predictions for validation photos, neighbours, and photos on their way."""
    chosen = _spread(len(data.val), SHOWN)
    squares = _rows(data.val, chosen)
    labels = np.asarray(data.val.labels)[chosen]
    probabilities = model.probabilities(squares)
    photos = []
    for square, label, row in zip(squares, labels, probabilities, strict=True):
        top = [[int(c), round(float(row[c]), 4)] for c in likeliest(row[None], 5)[0]]
        photos.append(
            {"image": _thumb(square), "label": int(label), "top": top,
             "p": round(float(row[label]), 5)}
        )  # fmt: skip
    predicted = probabilities.argmax(axis=1)
    right = [int(np.sum((labels == c) & (predicted == c))) for c in range(len(model.class_names))]
    count = [int(np.sum(labels == c)) for c in range(len(model.class_names))]
    share = [r / n if n else 2 for r, n in zip(right, count, strict=True)]
    matrix = sorted(sorted(range(len(share)), key=share.__getitem__)[:MATRIX])
    return {
        "photos": photos,
        "source": data.source,
        "photos_in_all": len(data.val),
        "by_class": [[c, right[c], count[c]] for c in range(len(count)) if count[c]],
        "matrix": matrix,
        "neighbours": _neighbours(model, data, squares),
        "walks": [
            {"photo": int(i), "stages": _walk(model, squares[i])}
            for i in _spread(len(squares), WALKS)
        ],
    }


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many of `count` places, evenly apart."""
    return np.arange(count) if count <= most else np.arange(most) * count // most


def _rows(photos: Any, ids: np.ndarray) -> np.ndarray:
    out = np.empty((len(ids), photos.size, photos.size, 3), np.uint8)
    photos.copy_rows(ids, out)
    return out


def _neighbours(model: Model, data: Data, squares: np.ndarray) -> list[dict[str, Any]]:
    """For some photos the training photos at the smallest distance in fc7 (figure 4, right)."""
    names = [layer.name for layer in model.net]
    if "fc7" not in names:
        return []
    chosen = _spread(len(data.train), TRAINING)
    pool = model.features(_rows(data.train, chosen), "fc7")
    queries = _spread(len(squares), QUERIES)
    found = []
    for i, vector in zip(queries, model.features(squares[queries], "fc7"), strict=True):
        nearest = np.linalg.norm(pool - vector, axis=1).argsort(kind="stable")[:NEIGHBOURS]
        images = _rows(data.train, chosen[nearest])
        labels = np.asarray(data.train.labels)[chosen[nearest]]
        found.append(
            {
                "photo": int(i),
                "nearest": [
                    [_thumb(image), int(label)] for image, label in zip(images, labels, strict=True)
                ],
            }
        )
    return found


def _walk(model: Model, square: np.ndarray) -> list[dict[str, Any]]:
    """What each layer makes of a photo: shape, range, and its strongest maps or units."""
    net, stages = model.net, []
    x = model.augment.centre(square[None])
    for layer in net:
        x = layer.forward(x, False)
        y = np.array(Device.to_host(x))[0]
        largest = y.reshape(-1, y.shape[-1]).max(axis=0)
        strongest = (-largest).argsort(kind="stable")[:MAPS]
        stage = {
            "name": layer.name,
            "kind": type(layer).__name__,
            "shape": "×".join(map(str, y.shape)),
            "range": [float(f"{v:.4g}") for v in (y.min(), y.mean(), y.max())],
            "zeros": round(float(np.mean(y == 0)), 4),
            "strongest": [[int(c), float(f"{largest[c]:.4g}")] for c in strongest[:5]],
        }
        if y.ndim == 3:
            maps, across = np.moveaxis(y[..., strongest], -1, 0), 8
        else:  # every unit, 64 in a row, as maps of one pixel
            maps, across = y.reshape(-1, 1, 1), 64
        low, high = maps.min(), maps.max()
        scaled = (255 * (maps - low) / (high - low if high > low else 1)).astype(np.uint8)
        if len(scaled) > 1:
            stage["image"] = _image(_tiles(scaled, min(across, len(scaled))))
        stages.append(stage)
    net.to(net.device)  # the book's buffers are freed
    return stages


# --- command


def photos_of(path: str | None, model: Model, data: str | None) -> Data | None:
    """The photos of --data, or those of the run in `path` if they are still there."""
    options: dict[str, Any] = {}
    if path is not None and (Path(path) / "run.json").is_file():
        options = json.loads((Path(path) / "run.json").read_text(encoding="utf-8"))
    elif data is None:
        return None
    source = data or options.get("data")
    if source is not None and not Path(source).exists():
        if data is not None:
            raise ValueError(f"--data {data}: there is no such file or folder")
        print(f"note: {source} does not exist any more; add --data for a page with photos")
        return None
    square = None if source and Path(source).is_file() else len(model.mean_image)
    return open_data(source, square, classes=options.get("classes"), seed=options.get("seed", 0))


def history_of(path: str | None) -> list[dict]:
    """The epochs in the run's metrics.jsonl; a torn last line is left out."""
    epochs = []
    file = Path(path or ".") / "metrics.jsonl"
    if path is not None and file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                epochs.append(json.loads(line))
    return epochs


def options(parser: argparse.ArgumentParser) -> None:
    """What `report` takes on the command line."""
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="folder of a run, or a weights file")
    add("--data", metavar="PATH", help="folder {train,val}/<class>/, or a prepared .h5 file")
    add("--out", metavar="FILE", help="the page (RUN/report.html, or report.html)")


def main(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    model = load_model(options.run)
    run = Path(options.run) if options.run else None
    out = options.out or (run / "report.html" if run and run.is_dir() else Path("report.html"))
    data = photos_of(options.run, model, options.data)
    with data or contextlib.nullcontext():
        title = f"{options.run or 'the net in the package'}"
        text = page(model, data, history_of(options.run), title)
    replace_file(out, text.encode())
    print(f"{out}: {len(text.encode()) / 2**20:.1f} MiB; open it in a browser")
    return 0
