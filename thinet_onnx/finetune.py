"""Fine-tune a pruned network against the original. PyTorch is imported when `finetune` is called, not before."""

import importlib.util
from pathlib import Path

import onnx

from thinet_onnx.data import Source
from thinet_onnx.errors import OptionError
from thinet_onnx.options import Progress, Silent
from thinet_onnx.training.options import FinetuneOptions, FinetuneResult, Validation

__all__ = ["FinetuneOptions", "FinetuneResult", "Validation", "finetune"]


def finetune(
    pruned: onnx.ModelProto, teacher: onnx.ModelProto, data: Source, options: FinetuneOptions | None = None, *,
    folder: Path | None = None, resume: bool = False, progress: Progress | None = None,
) -> FinetuneResult:  # fmt: skip
    """Train the weights of a pruned network so that it answers as the original does.

    Run by torchrun, every process takes its part of each batch; all return the same.

    Args:
        pruned: the network to train; left alone.
        teacher: the original, with the same inputs; tensors are compared by name.
        data: what to train on; labels are used with `label_weight` only.
        options: see `FinetuneOptions`; its defaults if None.
        folder: where checkpoints and `log.jsonl` (one line for each step and validation) are kept; None to keep none.
        resume: go on from the folder's checkpoint, if there is one; on a CPU the result is the one of an unbroken run.
        progress: who wants to know.

    Raises:
        OptionError: PyTorch is missing, an option doesn't fit, or the checkpoint is of another run.
        ModelError: no weight can be trained, or the twin doesn't compute what ONNX Runtime does.
        DataError: there is too little data.
    """
    if importlib.util.find_spec("torch") is None:
        raise OptionError("Fine-tuning needs PyTorch, which is not installed: pip install 'thinet-onnx[finetune]'.")
    from thinet_onnx.training.start import run  # noqa: PLC0415

    return run(pruned, teacher, data, options or FinetuneOptions(), folder, resume, progress or Silent())
