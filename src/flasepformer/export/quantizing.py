"""Smaller files: weights in fewer bits, unpacked when the file is loaded.

The products themselves stay in float32: the file gets smaller, not faster.
"""

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Quantization = Literal["int8", "fp16"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

SMALLEST_WEIGHT = 1024
"""Numbers from which a tensor is worth packing: norms, biases and scales stay as they are."""


def quantize(model: "onnx.ModelProto", kind: Quantization) -> None:
    """Pack the weights of a graph, in place.

    Args:
        model: With its weights inside.
        kind: "fp16": half precision. "int8": whole numbers from -127 to 127, with a scale for each column of
            a matrix, or each filter of a convolution.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    readers = {name: node for node in graph.node for name in node.input}
    nodes = []
    for tensor in list(graph.initializer):
        weight = numpy_helper.to_array(tensor)
        if weight.dtype != np.float32 or weight.size < SMALLEST_WEIGHT or tensor.name not in readers:
            continue
        name, packed = tensor.name, f"{tensor.name}.packed"
        if kind == "fp16":
            graph.initializer.append(numpy_helper.from_array(weight.astype(np.float16), packed))
            nodes.append(helper.make_node("Cast", [packed], [name], f"unpack {name}", to=TensorProto.FLOAT))
        else:
            axis = 0 if readers[name].op_type == "Conv" or weight.ndim < 2 else weight.ndim - 1
            if weight.ndim < 2:
                continue
            whole, scale = to_int8(weight, axis)
            graph.initializer.append(numpy_helper.from_array(whole, packed))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            inputs = [packed, f"{name}.scale"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [name], f"unpack {name}", axis=axis))
        graph.initializer.remove(tensor)
    for node in reversed(nodes):
        graph.node.insert(0, node)


def to_int8(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers and their scale along an axis.

    >>> whole, scale = to_int8(np.array([[1.0, -0.5], [0.25, 127.0]], np.float32), axis=1)
    >>> whole.tolist(), (127 * scale).tolist()
    ([[127, 0], [32, 127]], [1.0, 127.0])
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
    return np.rint(weight / scale).astype(np.int8), scale.reshape(-1)
