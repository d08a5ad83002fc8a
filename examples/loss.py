"""A loss of your own for `thinet-onnx finetune` (and for `prune --finetune loss=…`).

    thinet-onnx finetune small.onnx --teacher models/fashion_vgg.onnx --data models/fashion_calibration.npz \\
        --mean 0.286 --std 0.353 --loss examples/loss.py:margin --loss-weight 0.5
"""

import torch


def margin(outputs, batch):
    """Ask for a distance of 1 between the right class's score and the best of the others.

    Args:
        outputs: the network's outputs by name, tensors with gradients.
        batch: the inputs by name, `labels` where the data has them, and `teacher`, the original's outputs by name.

    Returns:
        a tensor of one number.
    """
    scores = outputs["logits"]
    return torch.nn.functional.multi_margin_loss(scores, batch["labels"].long())
