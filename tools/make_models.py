"""Train and export the two example networks of `models/`, with their calibration and test files.

Data: Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, MIT licence), as the four idx files of the Debian package
`dataset-fashion-mnist`. Needs the `finetune` extra and `onnxscript`:

    apt-get install dataset-fashion-mnist
    pip install -e '.[finetune]' onnxscript
    python tools/make_models.py --data /usr/share/datasets/fashion-mnist

Writes to `models/`:

* `fashion_resnet.onnx`: residual network, BatchNorm kept in the graph, TorchScript exporter, opset 13;
* `fashion_vgg.onnx`: plain network in the manner of VGG, BatchNorm folded, dynamo exporter, opset 18;
* `fashion_calibration.npz`: 512 training images; `fashion_test.npz`: the first 2,000 test images.

The figures in `models/README.md` are what this script prints at its end.
"""

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, on the 0..1 scale
CALIBRATION_IMAGES, TEST_IMAGES = 512, 2000


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut; a 1×1 convolution on the shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A small pre-2016 residual network: stem, three stages of two blocks, global pooling, one linear layer."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for index in range(2):
                blocks.append(Block(channels, width, 2 if stage and index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Vgg(nn.Module):
    """VGG's kind: pairs of 3×3 convolutions, max pooling, two fully connected layers on the flattened map."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), hidden: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(channels * 9, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped idx file (LeCun's MNIST format)."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def normalise(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(images.astype(np.float32))[:, None] / 255 - MEAN) / STD


def augment(x: Tensor) -> Tensor:
    """Random flip per image and one random crop of two pixels per batch."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    dy, dx = torch.randint(0, 5, (2,)).tolist()
    return F.pad(x, (2, 2, 2, 2), value=-MEAN / STD)[:, :, dy : dy + 28, dx : dx + 28]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return hits / len(y)


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = -(-len(x) // 128) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        model.train()
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(x)).split(128):
            loss = F.cross_entropy(model(augment(x[rows])), y[rows], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(
            f"  epoch {epoch + 1}/{epochs}: loss {total / len(x):.4f}, {time.perf_counter() - start:.0f} s", flush=True
        )


def export(model: nn.Module, path: Path, *, dynamo: bool) -> None:
    """Write `model` with a dynamic batch; TorchScript keeps BatchNorm (PRESERVE), the dynamo exporter folds it."""
    model.eval().to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, 1, 28, 28)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    if dynamo:
        batch = torch.export.Dim("batch", min=1)
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            opset_version=18,
            external_data=False,
            dynamic_shapes=({0: batch},),
            **names,
        )
    else:
        torch.onnx.export(
            model, (example,), path, dynamo=False, opset_version=13, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, **names,
        )  # fmt: skip


def strip_traces(path: Path) -> None:
    """Take out the stack traces that the dynamo exporter leaves in the file (paths of the machine it ran on)."""
    model = onnx.load(path)
    for entry in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        kept = [prop for prop in entry.metadata_props if "stack_trace" not in prop.key]
        del entry.metadata_props[:]
        entry.metadata_props.extend(kept)
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the four .gz idx files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    images, labels = (
        read_idx(args.data / "train-images-idx3-ubyte.gz"),
        read_idx(args.data / "train-labels-idx1-ubyte.gz"),
    )
    held, held_labels = (
        read_idx(args.data / "t10k-images-idx3-ubyte.gz"),
        read_idx(args.data / "t10k-labels-idx1-ubyte.gz"),
    )
    rows = np.random.default_rng(0).choice(len(images), CALIBRATION_IMAGES, replace=False)
    for name, x, y in (
        ("fashion_calibration.npz", images[rows], labels[rows]),
        ("fashion_test.npz", held[:TEST_IMAGES], held_labels[:TEST_IMAGES]),
    ):
        np.savez_compressed(args.out / name, images=x[..., None], labels=y.astype(np.int64))
    x, y = normalise(images), torch.from_numpy(labels.astype(np.int64))
    xt, yt = normalise(held), torch.from_numpy(held_labels.astype(np.int64))
    for name, model_class, dynamo in (("fashion_resnet", ResNet, False), ("fashion_vgg", Vgg, True)):
        torch.manual_seed(0)
        model = model_class()
        print(name, sum(p.numel() for p in model.parameters()), "parameters")
        train(model, x, y, args.epochs)
        print(f"{name}: {accuracy(model, xt, yt):.2%} of 10,000 test images, "
              f"{accuracy(model, xt[:TEST_IMAGES], yt[:TEST_IMAGES]):.2%} of the first {TEST_IMAGES:,}")  # fmt: skip
        export(model, args.out / f"{name}.onnx", dynamo=dynamo)
        strip_traces(args.out / f"{name}.onnx")


if __name__ == "__main__":
    main()
