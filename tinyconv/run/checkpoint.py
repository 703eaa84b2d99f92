"""Weights and whole states of a run in HDF5 files, whole or not at all (`sealed.py`).

    /weights/conv1.weight ...      one array a parameter, as trained (layout of layers/)
    /mean_image                    (S, S, 3) float32, subtracted from every photo
    /settings                      JSON: what is needed to build the net again, and its data set
    /velocities/conv1.weight ...   checkpoints only: the optimizer's memory
    /colour_axes                   checkpoints only, (3, 3), where colours are varied
    /progress                      checkpoints only, JSON: epoch, batch, step, sums, schedule, best

A weights file is a checkpoint without its last three: enough to use the net, not to resume its
training. No file contains code (no pickle): opening one from elsewhere executes nothing.
"""

import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from layers import Device
from tinyconv.recipes import Recipe
from tinyconv.run.layer_table import net_of_table
from tinyconv.run.models import MODELS
from tinyconv.run.sealed import SealError, open_sealed, read_json, write_json, write_sealed
from tinyconv.sequential import Sequential
from tinyconv.train import Progress, Training

KIND = "checkpoint 1"

PACKAGED = Path(__file__).parents[1] / "weights" / "imagenette.h5"
"""The net in the package; `benchmarks/packaged_net.py` trained it."""

FOREIGN = ".safetensors", ".npz", ".pth", ".pt", ".caffemodel"
"""Endings of files that `tinyconv/weights/importing.py` reads."""

FREE = "versions", "precision", "kernels"
"""Settings that are only recorded: a resumed run may have others."""


class CheckpointError(ValueError):
    """A weights file or checkpoint cannot be used, and why."""


class DamagedError(CheckpointError):
    """The file is missing or damaged; another checkpoint may be readable."""


def save_weights(
    path: str | Path,
    net: Sequential,
    mean_image: np.ndarray,
    settings: dict[str, Any],
    half: bool = False,
) -> None:
    """Write the net's parameters, the mean image and `settings` (JSON values) to `path`.

    half: in float16, compressed: less than half as large, with 11 significant bits.
    """
    write_sealed(path, KIND, lambda file: _write_weights(file, net, mean_image, settings, half))


def save_checkpoint(path: str | Path, training: Training, settings: dict[str, Any]) -> None:
    """Write everything that `training` needs to continue, between two steps, to `path`."""
    training.settle()
    augment = training.data.augment

    def fill(file: h5py.File) -> None:
        _write_weights(file, training.net, augment.mean, settings)
        velocities = file.create_group("velocities")
        for parameter in training.net.parameters():
            velocity = Device.to_host(training.optimizer.velocity(parameter))
            velocities.create_dataset(parameter.name, data=velocity)
        if augment.colour is not None:
            file.create_dataset("colour_axes", data=augment.colour)
        write_json(file, "progress", asdict(training.progress))

    write_sealed(path, KIND, fill)


def load_weights(path: str | Path, net: Sequential) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the parameters of `net` from `path`; returns the mean image and the settings.

    Nothing is changed unless every parameter is there in its shape. CheckpointError names the
    first difference, or says why the file cannot be read.
    """
    return _read(path, lambda file: _load_weights(path, file, net))


def load_checkpoint(path: str | Path, training: Training, settings: dict[str, Any]) -> None:
    """Restore `training` as it was when `path` was written.

    settings: those of this run, which must be the checkpoint's (but for FREE). Nothing is
    changed if they are not: CheckpointError names the first difference. DamagedError if the file
    cannot be read.
    """

    def read(file: h5py.File) -> None:
        if difference := first_difference(_complete(read_json(file, "settings")), settings):
            raise CheckpointError(
                f"{path}: {difference}; resume with the options, photos and version of tinyconv "
                "that wrote it, or start a new run with another --out"
            )
        if "progress" not in file:
            raise CheckpointError(f"{path}: holds only weights; training cannot be resumed from it")
        velocities = _read_arrays(path, file["velocities"], training.net)
        progress = Progress(**read_json(file, "progress"))
        _load_weights(path, file, training.net)
        for parameter, velocity in zip(training.net.parameters(), velocities, strict=True):
            place = training.optimizer.velocity(parameter)
            place[...] = parameter.device.array(velocity, place.dtype)
        training.progress = progress
        if progress.schedule:
            training.schedule.state = progress.schedule

    _read(path, read)


@dataclass
class Model:
    """A trained net, the mean image to subtract from its photos, and its settings."""

    net: Sequential
    mean_image: np.ndarray
    settings: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the net's outputs."""
        return list(self.settings["class_names"])

    @property
    def class_ids(self) -> list[str]:
        """Identifiers of the classes (WordNet's in ImageNet); the names where there are none."""
        return list(self.settings["class_ids"])


def load_model(
    path: str | Path,
    device: Device | str = "cpu",
    precision: str = "fp32",
    kernels: str = "fast",
) -> Model:
    """Build the net that `path` holds, on `device` in float32; the rest as `Sequential.to`.

    path: weights.h5, a checkpoint, the folder of a run (its best checkpoint, else its weights), or
    "packaged": the small net in the package.
    CheckpointError if there is none, or it cannot be read, or is not of an AlexNet.
    """
    path = Path(path)
    if str(path) == "packaged" and not path.exists():
        path = PACKAGED
    if path.suffix in FOREIGN and path.exists():
        raise CheckpointError(f"{path}: import it first: python -m tinyconv import {path} RUN")
    if path.is_dir():
        found = [path / name for name in ("best.h5", "weights.h5") if (path / name).exists()]
        if not found:
            raise CheckpointError(f"{path}: holds neither best.h5 nor weights.h5")
        path = found[0]

    def read(file: h5py.File) -> Model:
        settings = read_json(file, "settings")
        try:
            if "layers" in settings:
                net = net_of_table(settings["layers"], settings["input_shape"])
            else:
                classes, recipe = len(settings["class_names"]), Recipe(**settings["recipe"])
                model = MODELS[settings.get("model", "alexnet")]
                width = 1.0 if model.own_recipe else settings["width"]
                net = model.make(classes, width, settings["image_size"], recipe)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not say which net it is ({error})") from None
        mean_image, _ = _load_weights(path, file, net)
        net.to(device, precision=precision, kernels=kernels)
        return Model(net, mean_image, settings)

    return _read(path, read)


def _complete(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings, with the defaults of a recipe's fields that were added since."""
    recipe = stored.get("recipe")
    if isinstance(recipe, dict) and "default_std" in recipe:
        new = {f.name: f.default for f in fields(Recipe) if f.default is not MISSING}
        stored["recipe"] = json.loads(json.dumps(new)) | recipe
    return stored


def first_difference(stored: dict[str, Any], present: dict[str, Any]) -> str:
    """In words, the first setting in which a checkpoint differs from this run; "" for none.

    Those of FREE may differ.
    """
    present = json.loads(json.dumps(present))  # JSON knows no tuples
    for key in [*present, *(key for key in stored if key not in present)]:
        old, new = stored.get(key, "nothing"), present.get(key, "nothing")
        if key in FREE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return f"{key}, {first_difference(old, new)}"
        if isinstance(old, list) and isinstance(new, list):
            if len(old) != len(new):
                return f"{key}: the checkpoint has {len(old)}, this run has {len(new)}"
            place = next(i for i in range(len(old)) if old[i] != new[i])
            return f"{key}[{place}]: the checkpoint has {old[place]!r}, this run has {new[place]!r}"
        return f"{key}: the checkpoint has {old!r}, this run has {new!r}"
    return ""


def _write_weights(
    file: h5py.File,
    net: Sequential,
    mean_image: np.ndarray,
    settings: dict[str, Any],
    half: bool = False,
) -> None:
    weights = file.create_group("weights")
    kept: dict[str, Any] = {"dtype": "f2", "compression": 9, "shuffle": True} if half else {}
    for parameter in net.parameters():
        weights.create_dataset(parameter.name, data=Device.to_host(parameter.value), **kept)
    file.create_dataset("mean_image", data=mean_image, **kept)
    write_json(file, "settings", settings)


def _load_weights(
    path: str | Path, file: h5py.File, net: Sequential
) -> tuple[np.ndarray, dict[str, Any]]:
    values = _read_arrays(path, file["weights"], net)
    mean_image, settings = file["mean_image"][()].astype(np.float32), read_json(file, "settings")
    for parameter, value in zip(net.parameters(), values, strict=True):
        parameter.value[...] = parameter.device.array(value, parameter.value.dtype)
    return mean_image, settings


def _read_arrays(path: str | Path, group: h5py.Group, net: Sequential) -> list[np.ndarray]:
    """The stored array of each parameter. Shapes are compared before anything is read."""
    values = []
    for parameter in net.parameters():
        if parameter.name not in group:
            raise CheckpointError(f"{path}: holds no {parameter.name}; is it of another network?")
        stored, shape = group[parameter.name], tuple(parameter.value.shape)
        if stored.shape != shape or stored.dtype.kind != "f":
            raise CheckpointError(
                f"{path}: {parameter.name} is {stored.dtype} {stored.shape}, the net has {shape}"
            )
        values.append(stored[()])
    if extra := set(group) - {parameter.name for parameter in net.parameters()}:
        raise CheckpointError(f"{path}: holds {min(extra)}, which the net does not have")
    return values


def _read(path: str | Path, read: Callable[[h5py.File], Any]) -> Any:
    try:
        with open_sealed(path, KIND) as file:
            return read(file)
    except SealError as error:
        raise DamagedError(str(error)) from error
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # The digest is right but the contents are not ours: a file of another program.
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
