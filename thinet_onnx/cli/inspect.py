"""`thinet-onnx inspect`."""

from thinet_onnx import interrupts
from thinet_onnx.cli import shared
from thinet_onnx.cli.shared import Config, Debug, Json, Model, Scopes, Shapes
from thinet_onnx.options import parse_shapes

EXAMPLE = "thinet-onnx inspect models/fashion_resnet.onnx"


def inspect(
    model: Model,
    *,
    shape: Shapes = None,
    scope: Scopes = "all",
    json_file: Json = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Show which channels of MODEL can be removed, and why the others can't."""
    with shared.one_line_errors(debug):
        shapes = parse_shapes(shape or [])
        if json_file is not None:
            shared.check_output("--json", json_file, {"MODEL": model, "--config": config}, ".json")

        from thinet_onnx import pipeline  # noqa: PLC0415

        interrupts.raise_from_now()
        shared.show(pipeline.inspect(model, shapes=shapes, scope=scope), json_file)
