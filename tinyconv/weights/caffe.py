"""Caffe's files: blobs of a .caffemodel, and the mean image of a .binaryproto.

Both are protocol buffers. Needs the package protobuf (extra `export`), which reads the wire format;
the messages are described here as far as they are used, by the numbers of their fields.
"""

from typing import Any

import numpy as np

from layers import Dropout, LocalResponseNorm
from tinyconv.alexnet import alexnet
from tinyconv.sequential import Sequential
from tinyconv.weights.export import missing_extra

# (name, number, type, repeated); types as in descriptor.proto: 2 float, 5 int32, 3 int64, 9 string,
# 1 double, or the name of a message.
MESSAGES: dict[str, list[tuple[str, int, Any, bool]]] = {
    "BlobShape": [("dim", 1, 3, True)],
    "BlobProto": [
        *(("num", 1, 5, False), ("channels", 2, 5, False)),
        *(("height", 3, 5, False), ("width", 4, 5, False)),
        *(("data", 5, 2, True), ("shape", 7, "BlobShape", False), ("double_data", 8, 1, True)),
    ],
    "LayerParameter": [
        *(("name", 1, 9, False), ("type", 2, 9, False), ("blobs", 7, "BlobProto", True)),
    ],
    "V1LayerParameter": [("name", 4, 9, False), ("blobs", 6, "BlobProto", True)],
    "NetParameter": [
        ("name", 1, 9, False),
        *(("layers", 2, "V1LayerParameter", True), ("layer", 100, "LayerParameter", True)),
    ],
}


def message(name: str) -> Any:
    """The class of a message. ValueError, with the extra, where protobuf is not installed."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise missing_extra("protobuf") from None
    file = descriptor_pb2.FileDescriptorProto(
        name="tinyconv_caffe.proto", package="tinyconv_caffe", syntax="proto2"
    )
    for kind, fields in MESSAGES.items():
        described = file.message_type.add(name=kind)
        for field, number, of, repeated in fields:
            added = described.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(of, str):
                added.type, added.type_name = 11, f".tinyconv_caffe.{of}"
            else:
                added.type = of
                added.options.packed = repeated
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tinyconv_caffe.{name}"))


def parsed(name: str, content: bytes, path: Any) -> Any:
    """The message in `content`. ValueError for bytes that are none."""
    found = message(name)()
    try:
        found.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError, by its implementation
        raise ValueError(f"{path}: cannot be read as a {name} of Caffe ({error})") from None
    return found


def blob(found: Any, path: Any) -> np.ndarray:
    """The array of a BlobProto, float32. ValueError if its sizes do not fit its data."""
    data = np.array(found.data if len(found.data) else found.double_data, np.float32)
    shape = tuple(found.shape.dim) or (found.num, found.channels, found.height, found.width)
    if int(np.prod(shape)) != data.size:
        raise ValueError(f"{path}: a blob of shape {shape} has {data.size} values")
    return data.reshape(shape)


def read_caffemodel(content: bytes, path: Any) -> dict[str, list[np.ndarray]]:
    """The blobs of each layer, by name, in the order of the net. ValueError for another file."""
    net = parsed("NetParameter", content, path)
    found = {
        layer.name: [blob(each, path) for each in layer.blobs]
        for layer in (*net.layer, *net.layers)
    }
    if not any(found.values()):
        raise ValueError(f"{path}: no layer has weights; expected a .caffemodel of AlexNet")
    return found


def read_mean(content: bytes, path: Any) -> np.ndarray:
    """The mean image (S, S, 3), red green blue, of a .binaryproto (1, 3, S, S), blue green red."""
    mean = blob(parsed("BlobProto", content, path), path)
    mean = mean.reshape(mean.shape[-3:]) if mean.ndim == 4 and mean.shape[0] == 1 else mean
    if mean.ndim != 3 or mean.shape[0] != 3 or mean.shape[1] != mean.shape[2]:
        raise ValueError(f"{path}: the mean is {mean.shape}, expected (3, S, S)")
    return np.ascontiguousarray(np.moveaxis(mean[::-1], 0, -1))


def caffe_net(
    num_classes: int = 1000, width: float = 1.0, image_size: int = 227, pool_first: bool = False
) -> Sequential:
    """Caffe's bvlc_alexnet, its weights zero: (N, 227, 227, 3) to logits (N, num_classes).

    LRN has k = 1 and normalizes over all maps, dropout has the inverted form; else the paper's net.
    pool_first: pooling before LRN, as in bvlc_reference_caffenet.
    """
    net = alexnet(num_classes, width, image_size, "paper", init=False)
    if pool_first:
        other = {"norm1": "pool1", "pool1": "norm1", "norm2": "pool2", "pool2": "norm2"}
        names = [other.get(layer.name, layer.name) for layer in net]
        net = Sequential({name: net[name] for name in names}, net.input_shape)
    for layer in net:
        if isinstance(layer, LocalResponseNorm):
            layer.k, layer.alpha = 1.0, 1e-4 / layer.size
        if isinstance(layer, Dropout):
            layer.mode = "inverted"
    return net
