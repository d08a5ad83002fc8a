"""Networks with random weights for measuring time and memory: ResNet-50, chains of blocks, one very wide layer.

    python benchmarks/networks.py resnet50 OUTPUT.onnx
    python benchmarks/networks.py blocks:32 OUTPUT.onnx      (32 residual blocks of 32 channels on 32×32 pixels)
    python benchmarks/networks.py wide:2048 OUTPUT.onnx      (a 3×3 convolution that reads 2,048 channels)

The weights are drawn as He et al. (2015) propose, batch normalisation folded in, so that activations keep their size.
What such a network answers means nothing; what it costs is what a trained one costs.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Network:
    """A graph in the making; methods return the name of the tensor they add."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []
        self._size = size

    def _node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def _tensor(self, value: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(self, x: str, channels: int, filters: int, kernel: int, stride: int = 1, gain: float = 2.0) -> str:
        """A convolution with a bias, "same" padding."""
        spread = np.sqrt(gain / (channels * kernel**2))
        weight = self._tensor(spread * self._random.standard_normal((filters, channels, kernel, kernel)))
        bias = self._tensor(0.1 * self._random.standard_normal(filters))
        return self._node(
            "Conv", x, weight, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4
        )

    def relu(self, x: str) -> str:
        """The activation."""
        return self._node("Relu", x)

    def pool(self, x: str) -> str:
        """3×3 maxima, stride 2."""
        return self._node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def add(self, x: str, y: str) -> str:
        """The sum."""
        return self._node("Add", x, y)

    def head(self, x: str, channels: int, classes: int) -> str:
        """Global average pool, then a fully connected layer."""
        flat = self._node("Flatten", self._node("GlobalAveragePool", x))
        weight = self._tensor(self._random.standard_normal((classes, channels)) / np.sqrt(channels))
        return self._node("Gemm", flat, weight, self._tensor(np.zeros(classes)), transB=1)

    def model(self, output: str) -> onnx.ModelProto:
        """The checked model; its input is `x`, (N, 3, size, size)."""
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, self._size, self._size])
        y = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "random_weights", [x], [y], self._tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        return model


def resnet50(size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """ResNet-50 (He et al. 2016), stride in the 3×3 convolution, batch normalisation folded in: 4.1 G MACs at 224×224."""
    net = Network(size, seed)
    x, channels = net.pool(net.relu(net.conv("x", 3, 64, 7, 2))), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.relu(net.conv(x, channels, width, 1))
            y = net.relu(net.conv(y, width, width, 3, stride))
            y = net.conv(y, width, 4 * width, 1, gain=0.2)
            short = x if block else net.conv(x, channels, 4 * width, 1, stride, gain=1.0)
            x, channels = net.relu(net.add(y, short)), 4 * width
    return net.model(net.head(x, channels, 1000))


def blocks(count: int, width: int = 32, size: int = 32, seed: int = 0) -> onnx.ModelProto:
    """`count` residual blocks of two 3×3 convolutions, all of one width."""
    net = Network(size, seed)
    x = net.relu(net.conv("x", 3, width, 3))
    for _ in range(count):
        y = net.relu(net.conv(x, width, width, 3))
        x = net.relu(net.add(x, net.conv(y, width, width, 3, gain=0.2)))
    return net.model(net.head(x, width, 10))


def wide(channels: int, size: int = 14, seed: int = 0) -> onnx.ModelProto:
    """A 1×1 convolution to many channels and a 3×3 one that reads them: n = 9 × channels columns."""
    net = Network(size, seed)
    x = net.relu(net.conv("x", 3, 64, 3))
    x = net.relu(net.conv(x, 64, channels, 1))
    x = net.relu(net.conv(x, channels, 64, 3))
    return net.model(net.head(x, 64, 10))


def make(name: str) -> onnx.ModelProto:
    """The network of a name: `resnet50`, `resnet50:SIZE`, `blocks:COUNT`, `blocks:COUNT:WIDTH`, `wide:CHANNELS`."""
    kind, *numbers = name.split(":")
    makers = {"resnet50": resnet50, "blocks": blocks, "wide": wide}
    if kind not in makers:
        raise SystemExit(f"{name}: choose one of {', '.join(makers)}.")
    return makers[kind](*map(int, numbers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    onnx.save(make(args.network), args.output)
