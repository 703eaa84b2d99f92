"""A net as an ONNX graph, channels first: Conv, Relu, LRN, MaxPool, Gemm, Softmax.

Needs the package onnx (extra `export`). Pads may differ by side, groups become an attribute. Where
LRN stays within groups, the maps are split, normalized and joined. ONNX divides alpha by the size
of the window. Dropout in the paper's form multiplies by 1 − p in testing.
"""

import json
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from layers import (
    AvgPool2D,
    Conv2D,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2D,
    ReLU,
    Tanh,
)
from tinyconv.weights.layouts import channels_first, placed
from tinyconv.weights.model import Model, settings_of

OPSET = 17
IR_VERSION = 8
"""Of the year 2022: what runtimes since then can read."""


def onnx_bytes(model: Model, with_mean: bool) -> bytes:
    """The file's content. Input "x", or with_mean "pixels", float32 (N, 3, H, W); outputs "logits"
    and "probabilities" (N, classes). ValueError for a layer without an operator."""
    graph = _Graph(model, with_mean)
    classes = len(model.class_names)
    side = model.augment.crop
    inputs = [_value(graph.input, 3, side, side)]
    outputs = [_value("logits", classes), _value("probabilities", classes)]
    made = helper.make_graph(graph.nodes, "tinyconv", inputs, outputs, graph.constants)
    opset = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(made, opset_imports=opset, producer_name="tinyconv")
    proto.ir_version = IR_VERSION
    for key in ("class_names", "class_ids", "tinyconv"):
        entry = proto.metadata_props.add()
        value = settings_of(model) if key == "tinyconv" else getattr(model, key)
        entry.key, entry.value = key, json.dumps(value)
    checker.check_model(proto)
    return proto.SerializeToString()


def _value(name: str, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


class _Graph:
    """Nodes and constants, in the order of the layers."""

    def __init__(self, model: Model, with_mean: bool) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.input = now = "pixels" if with_mean else "x"
        if with_mean:
            crop, side = model.augment.crop, len(model.mean_image)
            first = (side - crop) // 2
            centre = model.mean_image[first : first + crop, first : first + crop]
            mean = self._constant("mean", np.moveaxis(centre, -1, 0))
            now = self._node("Sub", [now, mean], "centred")
            divisor = self._constant("divisor", np.float32(model.divisor))
            now = self._node("Div", [now, divisor], "normalized")
        weights = {each.layer.name: channels_first(each) for each in placed(model.net)}
        shapes = model.net.output_shapes(model.net.input_shape or ())
        for layer, shape in zip(model.net, shapes, strict=True):
            now = self._layer(layer, now, shape, weights.get(layer.name))
        self._node("Identity", [now], "logits")
        self._node("Softmax", ["logits"], "probabilities", axis=1)

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, name: str, array: Any) -> str:
        values = np.ascontiguousarray(array, np.float32) if np.ndim(array) else np.float32(array)
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _layer(self, layer: Layer, x: str, shape: tuple[int, ...], weights: Any) -> str:
        name = layer.name
        if weights:
            weight = self._constant(f"{name}.weight", weights[0])
            x_w_b = [x, weight, self._constant(f"{name}.bias", weights[1])]
        if isinstance(layer, Conv2D):
            pads = [layer.before, layer.before, layer.after, layer.after]
            size, stride = [layer.kernel_size] * 2, [layer.stride] * 2
            return self._node(
                *("Conv", x_w_b, name),
                kernel_shape=size, strides=stride, pads=pads, group=layer.groups,
            )  # fmt: skip
        if isinstance(layer, Linear):
            return self._node("Gemm", x_w_b, name, transB=1)
        if isinstance(layer, MaxPool2D | AvgPool2D):
            kind = "MaxPool" if isinstance(layer, MaxPool2D) else "AveragePool"
            size, stride = [layer.kernel_size] * 2, [layer.stride] * 2
            return self._node(
                kind, [x], name, kernel_shape=size, strides=stride, ceil_mode=int(layer.ceil)
            )
        if isinstance(layer, LocalResponseNorm):
            return self._lrn(layer, x, shape[-1])
        if isinstance(layer, Dropout):
            if layer.mode == "inverted":
                return x
            keep = self._constant(f"{name}.keep", np.float32(1 - layer.p))
            return self._node("Mul", [x, keep], name)
        kinds = {ReLU: "Relu", Tanh: "Tanh", Flatten: "Flatten"}
        if type(layer) not in kinds:
            raise ValueError(f"{name}: a {type(layer).__name__} has no operator in this export")
        return self._node(kinds[type(layer)], [x], name)

    def _lrn(self, layer: LocalResponseNorm, x: str, channels: int) -> str:
        attributes = {
            "size": layer.size,
            "alpha": float(layer.alpha * layer.size),
            "beta": float(layer.beta),
            "bias": float(layer.k),
        }
        if layer.groups == 1:
            return self._node("LRN", [x], layer.name, **attributes)
        parts = [f"{layer.name}.part{i}" for i in range(layer.groups)]
        widths = np.full(layer.groups, channels // layer.groups, np.int64)
        self.constants.append(numpy_helper.from_array(widths, f"{layer.name}.widths"))
        self.nodes.append(helper.make_node("Split", [x, f"{layer.name}.widths"], parts, axis=1))
        done = [self._node("LRN", [part], f"{part}.done", **attributes) for part in parts]
        return self._node("Concat", done, layer.name, axis=1)
