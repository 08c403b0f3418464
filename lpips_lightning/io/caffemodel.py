"""Layers of a ``.caffemodel``, without Caffe: of its messages, only names and blobs are declared here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lpips_lightning.weights import WeightsError

# caffe.proto: message -> field -> (number, type, whether it repeats, message type). Packed floats are bytes here, which
# are read at once instead of one by one.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool, str]]] = {
    "BlobShape": {"dim": (1, "INT64", True, "")},
    "BlobProto": {
        "num": (1, "INT32", False, ""),
        "channels": (2, "INT32", False, ""),
        "height": (3, "INT32", False, ""),
        "width": (4, "INT32", False, ""),
        "data": (5, "BYTES", False, ""),
        "shape": (7, "MESSAGE", False, "BlobShape"),
        "double_data": (8, "BYTES", False, ""),
    },
    "V1LayerParameter": {"name": (4, "STRING", False, ""), "blobs": (6, "MESSAGE", True, "BlobProto")},
    "LayerParameter": {"name": (1, "STRING", False, ""), "blobs": (7, "MESSAGE", True, "BlobProto")},
    "NetParameter": {
        "layers": (2, "MESSAGE", True, "V1LayerParameter"),
        "layer": (100, "MESSAGE", True, "LayerParameter"),
    },
}


def read_caffemodel(path: Path) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Read the blobs of every layer that has some.

    Args:
        path: A ``.caffemodel``; also one of 2014, with ``layers`` instead of ``layer``.

    Returns:
        Arrays by the name of the layer, in the order of the file.

    Raises:
        OSError: If the file cannot be read.
        ModuleNotFoundError: If the package protobuf is not installed.
        WeightsError: If the file is damaged, or no caffemodel.
    """
    net = _net_parameter()()
    try:
        net.ParseFromString(path.read_bytes())
        layers = {layer.name: [_array(blob) for blob in layer.blobs] for layer in (*net.layers, *net.layer)}
    except OSError:
        raise
    except Exception as error:  # protobuf's own type, and ValueError for shapes that do not fit
        raise WeightsError(f"{path}: expected a caffemodel, got a damaged file or another format ({error})") from error
    found = {name: blobs for name, blobs in layers.items() if blobs}
    if not found:
        raise WeightsError(
            f"{path}: expected a caffemodel with weights, got none; upgrade_net_proto_binary of Caffe converts files of"
            " 2013"
        )
    return found


def _array(blob: Any) -> np.ndarray[Any, Any]:
    values = np.frombuffer(blob.double_data, "<f8") if blob.double_data else np.frombuffer(blob.data, "<f4")
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    return values.astype(np.float32).reshape(shape)  # a copy, which can be written to


@cache
def _net_parameter() -> Any:
    """The class of caffe.proto's NetParameter."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "caffemodel: expected the package protobuf, which is not installed: pip install protobuf"
        ) from error
    file = descriptor_pb2.FileDescriptorProto(name="lpips_lightning/caffe.proto", package="caffe", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeats, type_name) in fields.items():
            label = kinds.LABEL_REPEATED if repeats else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label, type=getattr(kinds, f"TYPE_{kind}"))
            if type_name:
                added.type_name = f".caffe.{type_name}"
            elif repeats:
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
