"""Which operators an exported file may have, so that it runs in a browser too."""

from collections.abc import Iterable

from flasepformer.export.errors import ExportError

WEB_GPU = frozenset(
    """
    Abs Add ArgMax ArgMin BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose Cos CumSum Div
    Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements Gemm Greater GreaterOrEqual If
    InstanceNormalization LayerNormalization Less LessOrEqual Log MatMul Mul Neg Not Pad Pow Range
    Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Reshape Resize Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose
    Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""Of the standard operators in onnxruntime-web's js/web/docs/webgpu-operators.md (1.18 to 1.24) those that a
network could need."""

WEB_ASSEMBLY = frozenset(
    "And CastLike Constant ConstantOfShape DequantizeLinear Identity IsNaN Max Min Mod Or Sum Trilu".split()  # noqa: SIM905
)
"""What onnxruntime-web has beside them only in WebAssembly, whose build has the CPU's operators: harmless for
numbers and shapes, and for weights that are unpacked once."""


def missing_operators(kinds: Iterable[str]) -> list[str]:
    """Return the kinds of operators that a browser does not have, or breaks on as on ScatterND.

    >>> missing_operators(["MatMul", "ScatterND", "DFT", "Add"])
    ['DFT', 'ScatterND']
    """
    return sorted(set(kinds) - WEB_GPU - WEB_ASSEMBLY)


def check_operators(kinds: Iterable[str]) -> None:
    """Refuse operators that a runtime may lack.

    Raises:
        ExportError: Naming them.
    """
    missing = missing_operators(kinds)
    if missing:
        raise ExportError(
            f"the graph has operators that onnxruntime-web lacks or breaks on: {', '.join(missing)}; "
            "no file is left"
        )
