"""Train a pruned network in a loop of your own, and put the weights back into the file. Needs PyTorch.

    python examples/train.py [OUTPUT.onnx]

`to_torch` makes a module of the graph (inputs and outputs in the graph's order); its parameters are the file's own constants,
so that `from_torch` has nothing to export anew.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import torch

import thinet_onnx

MODELS = Path(__file__).parents[1] / "models"
STEPS, BATCH = 20, 32


def main(output: Path) -> None:
    """Prune every layer to half by the size of its weights, then learn the original's answers for a few steps."""
    torch.manual_seed(0)
    model = onnx.load(MODELS / "fashion_vgg.onnx")
    data = np.load(MODELS / "fashion_calibration.npz")
    images = torch.from_numpy((data["images"].transpose(0, 3, 1, 2) / 255.0 - 0.286) / 0.353).float()
    small = thinet_onnx.prune(
        model, {"image": images[:64].numpy()}, keep=0.5, method="weight-sum", reconstruct="none"
    ).model

    teacher, student = thinet_onnx.to_torch(model).eval(), thinet_onnx.to_torch(small)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for step in range(STEPS):
        batch = images[torch.randint(len(images), (BATCH,))]
        with torch.no_grad():
            wanted = teacher(batch)  # one output: a tensor; several: a tuple
        given = student(batch)
        loss = torch.nn.functional.mse_loss(given, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}")
    onnx.save(thinet_onnx.from_torch(student, small), output)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "trained.onnx"))
