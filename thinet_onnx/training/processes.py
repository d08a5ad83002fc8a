"""Several processes that train together, as torchrun starts them: sums over all of them, gradients included."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from thinet_onnx.errors import OptionError


class _Total(torch.autograd.Function):
    """The sum of a tensor over all processes. Each of them sees the sum, so the gradients are summed as well."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


class Processes:
    """This process among `count`, of which it is number `rank`; joins the others where torchrun set the environment.

    Args:
        device: what the processes compute on; of several CUDA devices each takes its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self.device = device
        if device.type == "cuda" and self.count > 1:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        self._joined = self.count > 1 and not distributed.is_initialized()
        if self._joined:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and tells of progress."""
        return self.rank == 0

    def share(self, rows: list[int]) -> list[int]:
        """This process's part of some items."""
        return rows[self.rank :: self.count]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, for the forward pass and the backward pass."""
        if self.count == 1:
            return value
        result: Tensor = _Total.apply(value)  # type: ignore[no-untyped-call]
        return result

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over all processes, in place and in one message."""
        parts = list(tensors)
        if self.count == 1 or not parts:
            return
        flat = torch.cat([part.reshape(-1) for part in parts])
        distributed.all_reduce(flat)
        for part, new in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
            part.copy_(new.reshape(part.shape))

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the others."""
        if self._joined:
            distributed.destroy_process_group()


def find_device(name: str) -> torch.device:
    """The device by its name; `auto` is the fastest there is.

    Raises:
        OptionError: there is no such device here.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        raise OptionError(f"--device {name}: PyTorch finds none here; use --device auto, or cpu.")
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_short(device: torch.device) -> bool:
    """Whether a device is a GPU that multiplies in bfloat16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
