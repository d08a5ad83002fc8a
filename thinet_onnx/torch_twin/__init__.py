"""The torch twin of an ONNX graph: `to_torch` reads a file into a torch module, `from_torch` writes its weights back.

Importing this package needs PyTorch and fills the table of operators. Nothing is ever exported again: what is trained are
the constants of the file, and they go back to where they came from.
"""

from thinet_onnx.torch_twin import elementwise, layout, linear, normalise, pooling, quantise, reduce, resize
from thinet_onnx.torch_twin.check import TwinCheck, twin_check
from thinet_onnx.torch_twin.convert import from_torch, to_torch
from thinet_onnx.torch_twin.cut import Cut, find_cut
from thinet_onnx.torch_twin.module import Twin, decoded, encoded
from thinet_onnx.torch_twin.registry import OPERATORS

__all__ = [
    "OPERATORS", "Cut", "Twin", "TwinCheck", "decoded", "elementwise", "encoded", "find_cut", "from_torch", "layout", "linear",
    "normalise", "pooling", "quantise", "reduce", "resize", "to_torch", "twin_check",
]  # fmt: skip
