"""The kernels outside of layers: the optimizer's and the augmentation's."""

import numpy as np

from layers import Conv2D, Device, Parameter
from layers.fast.plan import plan
from tinyconv import sgd
from tinyconv.data import augment
from tinyconv.lab.cases.case import KernelCase, KernelGroup, Shape
from tinyconv.lab.cases.runs import Run, random

PIXELS = (2, 9, 9, 3)


def update(shape: Shape, dtype: str) -> dict[str, Run]:
    """An update of a layer's weights and biases."""
    weight, bias = Parameter("weight", shape), Parameter("bias", shape[:1])
    for parameter in (weight, bias):
        parameter.to("cuda:0", dtype)
        parameter.value[...] = parameter.grad[...] = random(parameter.value.shape)
    return {"sgd": sgd.SGD([weight, bias]).step}


def crops(shape: Shape, dtype: str) -> dict[str, Run]:
    """Crops of (N, H, W, 3) photos, as for training and for testing."""
    if shape[-1] != 3:
        raise ValueError(f"crop takes photos of 3 channels, not {shape}; try --shape 2,10,10,3")
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean = images.mean(axis=0).astype(np.float32)
    training = augment.Augment(mean, max(1, shape[1] * 7 // 8), colour=20 * np.eye(3))
    testing = augment.Augment(mean, max(1, shape[1] // 2))
    reader = None
    if dtype == "bfloat16":  # for a convolution, with a border of zeros
        dtype, conv = "float32", Conv2D(3, 1, 5, stride=4, padding=2)
        reader = plan([conv], Device("cuda:0"), precision="bf16")[0]
    for cutter in (training, testing):
        cutter.to("cuda:0", dtype, reader)
    return {
        "crop": lambda: training.random(images, np.arange(shape[0]), 0),
        "crop, ten views": lambda: testing.ten_views(images),
    }


GROUPS = {
    "sgd": KernelGroup(
        runs=update,
        shapes=((5, 7), (1, 1), (257, 3)),
        small=(24, 16),
        cases=(
            KernelCase(  # updates w and v
                *(sgd.sgd_kernel, "5*number[1] 2*number int32[1]", "", (1, 3)),
                operations=lambda w, *_: 8 * w.size,
                threads=256,
            ),
        ),
    ),
    "crop": KernelGroup(
        runs=crops,
        shapes=(PIXELS, (1, 8, 8, 3), (3, 16, 16, 3)),
        small=(2, 10, 10, 3),
        cases=(
            KernelCase(
                augment.crop_kernel,
                "uint8[1] number[1] 3*int32[1] number[1] 2*int64 number stored[1] 4*int64 "
                "2*boolean",
                "x",
                (0, 3),
                threads=256,
            ),
        ),
    ),
}
