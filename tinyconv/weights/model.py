"""A trained net in use: photos in, names of classes or features out.

    model = tinyconv.load_model("runs/001")      # without an argument: the net in the package
    model.predict("cat.jpg")                     # [("tabby", 0.93), ...], the likeliest first
    model.features(["cat.jpg", "dog.jpg"], "fc7")

A photo is a path, an open file, a Pillow image, or an array (H, W, 3) of 8-bit red, green, blue:
NumPy's or any with `__dlpack__` (a tensor of PyTorch or CuPy). It is prepared as the net's training
prepared its photos: central square, mean image, divisor.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from layers import Device, Linear
from tinyconv.data.arrays import array_on
from tinyconv.data.augment import Augment
from tinyconv.data.photos import PhotoError, central_square, decode_square
from tinyconv.data.random_arrays import normal
from tinyconv.evaluate import average, check_views, likeliest, log_probabilities
from tinyconv.recipes import RECIPES, Recipe
from tinyconv.run import checkpoint
from tinyconv.run.checkpoint import CheckpointError, save_weights
from tinyconv.run.features import output_of
from tinyconv.run.layer_table import layer_table, net_of_table
from tinyconv.sequential import Sequential

AT_ONCE = 64
"""Crops in one forward pass."""


class Model:
    """A net with what its photos need: made by `load_model`, or of a net of one's own.

    net: on its device, with `input_shape` (crop, crop, 3). mean_image: (S, S, 3) float32, S at
    least the crop, subtracted from every photo; divisor: the result is divided by it. class_names,
    class_ids: in the order of the net's outputs (ids: the names). settings: kept in the file.
    ValueError if sizes do not fit.
    """

    def __init__(
        self,
        net: Sequential,
        mean_image: np.ndarray,
        class_names: Sequence[str],
        divisor: float = 1.0,
        class_ids: Sequence[str] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        if net.input_shape is None or len(net.input_shape) != 3:
            raise ValueError("Model: the net has no input_shape (H, W, 3); give it to Sequential")
        (outputs,) = net.output_shapes(net.input_shape)[-1]
        if outputs != len(class_names):
            raise ValueError(f"Model: {len(class_names)} class names for {outputs} outputs")
        self.net, self.divisor, self.settings = net, divisor, dict(settings or {})
        self.class_names = [str(name) for name in class_names]
        self.class_ids = [str(each) for each in class_ids or class_names]
        self.augment = Augment(np.asarray(mean_image, np.float32), net.input_shape[0], divisor)
        self.augment.to(net.device, net.dtype)

    @property
    def mean_image(self) -> np.ndarray:
        """The training set's mean image (S, S, 3) float32."""
        return self.augment.mean

    def __repr__(self) -> str:
        side, size = self.augment.crop, sum(p.value.size for p in self.net.parameters())
        return f"Model({len(self.class_names)} classes, {side}×{side} pixels, {size:,} parameters)"

    # --- photos

    def squares(self, photos: Any) -> np.ndarray:
        """One photo or a list of them as uint8 (N, S, S, 3), the squares that crops are cut from.

        A uint8 array (N, S, S, 3) is taken as it is. PhotoError for anything else.
        """
        size = len(self.mean_image)
        if not isinstance(photos, str | os.PathLike) and isinstance(photos, list | tuple):
            if not photos:
                raise PhotoError("no photos were given")
            return np.concatenate([self.squares(photo) for photo in photos])
        if isinstance(photos, Image.Image):
            return np.array(central_square(photos.convert("RGB"), size))[None]
        if hasattr(photos, "__dlpack__") or isinstance(photos, np.ndarray):
            return _squares_of_array(photos, size)
        path = photos if hasattr(photos, "read") else Path(photos)
        if isinstance(path, Path) and path.exists() and not path.is_file():
            raise PhotoError(f"{path}: not an ordinary file")  # opening a pipe would wait forever
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
            try:
                return decode_square(path, size)[None]
            except PhotoError as error:
                raise PhotoError(f"{photos}: {error}") from error

    def preprocess(self, photos: Any) -> Any:
        """The net's input x (N, crop, crop, 3), on its device, for one photo or a list of them.

        The central crop. The array is overwritten by the next call.
        """
        return self.augment.centre(self.squares(photos))

    # --- answers

    def probabilities(self, photos: Any, views: str = "centre") -> np.ndarray:
        """The probabilities (N, classes) float64; views: "centre", or "ten", which are averaged.

        ValueError if they are not finite.
        """
        check_views(views)
        squares = self.squares(photos)
        parts = [squares[i : i + AT_ONCE] for i in range(0, len(squares), AT_ONCE)]
        logs = [average(log_probabilities(self.net, self.augment, x, views)) for x in parts]
        found = np.exp(np.concatenate(logs))
        if not np.isfinite(found).all():
            raise ValueError("the predictions are not finite; did training fail?")
        return found

    def predict(self, photos: Any, k: int = 5, views: str = "centre") -> Any:
        """The k likeliest classes [(name, probability), ...] of a photo; of a list, a list of them.

        photos: one, a list, or an array (N, S, S, 3); views as in `probabilities`.
        """
        found = self.probabilities(photos, views)
        named = [
            [(self.class_names[c], float(row[c])) for c in best]
            for row, best in zip(found, likeliest(found, k), strict=True)
        ]
        one = not isinstance(photos, list | tuple) and len(getattr(photos, "shape", ())) != 4
        return named[0] if one else named

    def features(self, photos: Any, layer: str = "fc7") -> np.ndarray:
        """The outputs (N, ...) float32 of `layer` (`run/features.py`), of the central crops."""
        squares = self.squares(photos)
        parts = [squares[i : i + AT_ONCE] for i in range(0, len(squares), AT_ONCE)]
        return np.concatenate(
            [output_of(self.net, self.augment.centre(each), layer) for each in parts]
        )

    # --- other classes

    def for_classes(self, class_names: Sequence[str], seed: int = 0) -> "Model":
        """A model for other classes: all weights but those of the last layer, which are drawn.

        The first step of fine-tuning. Its net is new, on the same device. ValueError if the last
        layer isn't a Linear.
        """
        table = layer_table(self.net)
        name, kind, arguments = table[-1]
        if kind != "Linear":
            raise ValueError(f"for_classes: the last layer, {name}, is a {kind}, not a Linear")
        table[-1] = [name, kind, [arguments[0], len(class_names)]]
        net = net_of_table(table, self.net.input_shape)
        last = len(self.net) - 1
        for place, (new, old) in enumerate(zip(net, self.net, strict=True)):
            for parameter, other in zip(new.parameters(), old.parameters(), strict=True):
                parameter.lr_multiplier = other.lr_multiplier
                parameter.decay_multiplier = other.decay_multiplier
                if place < last:
                    parameter.value[...] = Device.to_host(other.value)
        classifier = net.layers[-1]
        assert isinstance(classifier, Linear)
        shape = classifier.weight.value.shape
        classifier.weight.value[...] = normal(shape, 0.01, seed, last)
        net.to(self.net.device, precision=self.net.precision, kernels=self.net.kernels)
        return Model(net, self.mean_image, class_names, self.divisor)


def load_model(
    path: str | Path | None = None,
    device: Device | str = "cpu",
    precision: str = "fp32",
    kernels: str = "fast",
) -> Model:
    """The trained net in `path`, on `device`; the rest as `Sequential.to`.

    path: a run's folder, weights.h5, a checkpoint, or a file that `save_model` or `python -m
    tinyconv import` has written; None or "packaged": the small net in the package. CheckpointError
    if it cannot be used.
    """
    path = "packaged" if path is None else path
    found = checkpoint.load_model(path, device, precision, kernels)
    settings = found.settings
    try:
        divisor = Recipe(**settings["recipe"]).input_divisor
        ids = settings.get("class_ids", found.class_names)
        return Model(found.net, found.mean_image, found.class_names, divisor, ids, settings)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its mean image or classes do not fit ({error})") from None


def save_model(path: str | Path, model: Model, half: bool = False) -> None:
    """Write `model` to `path`, for `load_model`, `evaluate` and the commands of tinyconv.

    half: in float16, at less than half the size. ValueError for a net with layers that are not of
    the package `layers`; OSError if it cannot be written.
    """
    save_weights(path, model.net, model.mean_image, settings_of(model), half)


def settings_of(model: Model) -> dict[str, Any]:
    """What the file has to say besides weights and mean image, as JSON values."""
    stored = model.settings.get("recipe")
    recipe = Recipe(**stored) if stored else RECIPES["paper"]
    return {
        "width": 1.0,
        **model.settings,
        "image_size": model.augment.crop,
        "input_divisor": model.divisor,
        "recipe": asdict(replace(recipe, input_divisor=model.divisor)),
        "class_ids": model.class_ids,
        "class_names": model.class_names,
        "layers": layer_table(model.net),
        "input_shape": list(model.net.input_shape or ()),
    }


def _squares_of_array(photos: Any, size: int) -> np.ndarray:
    """uint8 (N, size, size, 3) of an array (H, W, 3), or of (N, size, size, 3)."""
    if not isinstance(photos, np.ndarray):
        if hasattr(photos, "get") and hasattr(photos, "ndim"):  # CuPy's
            photos = photos.get()
        photos = array_on(Device("cpu"), photos, "the photo")
    if photos.ndim in (3, 4) and photos.shape[-1] != 3 and photos.shape[-3] == 3:
        raise PhotoError(
            f"a photo of shape {photos.shape} is channels first; nets here take channels last, "
            "(H, W, 3): use numpy.moveaxis(photo, 0, -1), or photo.permute(1, 2, 0) in PyTorch"
        )
    if photos.dtype != np.uint8 or photos.ndim not in (3, 4) or photos.shape[-1] != 3:
        raise PhotoError(
            f"a photo as an array must be uint8 (H, W, 3), red, green, blue from 0 to 255, not "
            f"{photos.dtype} {photos.shape}"
        )
    if photos.ndim == 3:
        return np.array(central_square(Image.fromarray(np.ascontiguousarray(photos)), size))[None]
    if photos.shape[1:3] == (size, size):
        return photos
    return np.concatenate([_squares_of_array(photo, size) for photo in photos])
