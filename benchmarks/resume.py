"""Kills runs at random moments, lets them go on, and compares what they end in with a run in one go, byte for byte.

    python benchmarks/resume.py [MODEL --data DATA --mean M --std S] [--times 5] [--target macs=50%] [other options of prune]

Without a model: the bundled residual network on some of its images. Each round starts `prune --state` with an empty folder
and kills the process (SIGKILL) after a random share of the time that a whole run took, again and again until it ends by
itself; then the files are compared.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = Path(__file__).parent.parent / "models"
BUNDLED = ["--data", str(MODELS / "fashion_calibration.npz"), "--mean", "0.286", "--std", "0.353", "--samples", "96"]


def started(model: Path, output: Path, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "thinet_onnx", "prune", str(model), str(output), "--quiet", *options]
    return subprocess.Popen(command)


def one_round(model: Path, folder: Path, options: list[str], seconds: float, dice: random.Random) -> tuple[bytes, int]:
    """The bytes that a run ends in that is killed on the way, and how often it was."""
    output, kills = folder / "out.onnx", 0
    while True:
        process = started(model, output, [*options, "--state", str(folder / "state")])
        try:
            code = process.wait(timeout=dice.uniform(0.1, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            kills += 1
            steps = len(list((folder / "state").glob("step-*.npz")))
            print(f"  killed, {steps} layers done", flush=True)
            seconds *= 1.1  # so that a run whose start takes long comes to its end
            continue
        if code:
            raise SystemExit(f"prune ended with code {code}")
        return output.read_bytes(), kills


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODELS / "fashion_resnet.onnx")
    parser.add_argument("--times", type=int, default=5, help="rounds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, options = parser.parse_known_args(arguments)
    if "--data" not in options:
        options = [*BUNDLED, *options]
    dice, different = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        if code := started(args.model, folder / "whole.onnx", options).wait():
            return code
        seconds = time.monotonic() - begin
        expected = (folder / "whole.onnx").read_bytes()
        print(f"in one go: {seconds:.1f} s, {len(expected):,} bytes")
        for number in range(1, args.times + 1):
            place = folder / str(number)
            place.mkdir()
            found, kills = one_round(args.model, place, options, seconds, dice)
            same = found == expected
            different += not same
            print(f"round {number}: killed {kills} times, {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
    print(f"{args.times - different} of {args.times} rounds end in the same file")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
