"""Write `thinet_onnx/readiness/tensorrt_operators.json`: what the ONNX parser of TensorRT reads, as its project states it.

    python tools/tensorrt_operators.py operators.md

`operators.md` is `docs/operators.md` of https://github.com/onnx/onnx-tensorrt; the page itself says which release it is for.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "thinet_onnx" / "readiness" / "tensorrt_operators.json"
SOURCE = "https://github.com/onnx/onnx-tensorrt, docs/operators.md"
HEADER = re.compile(r"TensorRT ([0-9.]+) supports operators in the inclusive range of opset (\d+) to opset (\d+)")
ROW = re.compile(r"^\| *(\w+) *\| *([YN])\b[^|]*\|?([^|]*)\|?(.*)$")


def table(text: str) -> dict[str, Any]:
    """The page as data: release, operator sets, names that are read (with what restricts them) and names that aren't."""
    header = HEADER.search(text)
    if header is None:
        raise SystemExit("error: the page doesn't say which TensorRT and operator sets it is for")
    rows = [match for line in text.splitlines() if (match := ROW.match(line)) is not None]
    read = {match[1]: _plain(match[4]) for match in rows if match[2] == "Y"}
    return {
        "source": SOURCE,
        "tensorrt": header[1],
        "opsets": [int(header[2]), int(header[3])],
        "read": dict(sorted(read.items())),
        "not_read": sorted(match[1] for match in rows if match[2] == "N"),
    }


def _plain(cell: str) -> str:
    text = re.sub(r"<br ?/?>", " ", cell.strip().removesuffix("|")).replace("`", "")
    return " ".join(text.split())


if __name__ == "__main__":
    page = Path(sys.argv[1]).read_text(encoding="utf-8")
    TARGET.write_text(json.dumps(table(page), indent=1) + "\n", encoding="utf-8")
