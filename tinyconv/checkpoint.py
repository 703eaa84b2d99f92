"""Weights in an HDF5 file, whole or not at all.

    /weights/conv1.weight ...   one array a parameter, as trained (layout of layers/)
    /mean_image                 (S, S, 3) float32, subtracted from every photo
    attributes                  format, version, and what is needed to build the net again (JSON)

A file is written under a temporary name, flushed to disk, and then renamed: a reader sees the old
file or the new one, never half of one. The bytes depend on the contents alone (no time stamps).
"""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from layers import Device
from tinyconv.sequential import Sequential

FORMAT = "tinyconv weights"
VERSION = 1


class CheckpointError(ValueError):
    """A weights file cannot be used, and why."""


def save_weights(
    path: str | Path, net: Sequential, mean_image: np.ndarray, settings: dict[str, Any]
) -> None:
    """Write the net's parameters, the mean image and `settings` (JSON values) to `path`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["version"] = VERSION
            file.attrs["settings"] = json.dumps(settings, sort_keys=True)
            weights = file.create_group("weights")
            for parameter in net.parameters():
                weights.create_dataset(parameter.name, data=Device.to_host(parameter.value))
            file.create_dataset("mean_image", data=mean_image)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_weights(path: str | Path, net: Sequential) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the parameters of `net` from `path`; returns the mean image and the settings.

    Nothing is changed unless every parameter is there in its shape. CheckpointError names the
    first difference, or says why the file cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
                raise CheckpointError(f"{path}: not a {FORMAT} file of version {VERSION}")
            values = _read_parameters(path, file["weights"], net)
            mean_image = file["mean_image"][()]
            settings = json.loads(file.attrs["settings"])
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make HDF5 raise nearly anything
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    for parameter, value in zip(net.parameters(), values, strict=True):
        parameter.value[...] = parameter.device.array(value, parameter.value.dtype)
    return mean_image, settings


def _read_parameters(path: str | Path, weights: h5py.Group, net: Sequential) -> list[np.ndarray]:
    """The stored array of each parameter. Shapes are compared before anything is read."""
    values = []
    for parameter in net.parameters():
        if parameter.name not in weights:
            raise CheckpointError(f"{path}: holds no {parameter.name}; is it of another network?")
        stored, shape = weights[parameter.name], tuple(parameter.value.shape)
        if stored.shape != shape or stored.dtype.kind != "f":
            raise CheckpointError(
                f"{path}: {parameter.name} is {stored.dtype} {stored.shape}, the net has {shape}"
            )
        values.append(stored[()])
    if extra := set(weights) - {parameter.name for parameter in net.parameters()}:
        raise CheckpointError(f"{path}: holds {min(extra)}, which the net does not have")
    return values
