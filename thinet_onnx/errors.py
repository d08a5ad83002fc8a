"""The errors a user can meet: one small tree, each message one sentence, each ending a command with exit code 2.

    ThinetError
    ├── ModelError     the .onnx file: missing, truncated, not ONNX, rejected by ONNX Runtime
    ├── DataError      the calibration or test data: missing, wrong name, shape or dtype, NaN, label mismatch
    ├── OptionError    an option: unknown value, contradiction, bad syntax
    ├── TargetError    a target that no choice of channels reaches
    ├── NothingToPruneError  the graph holds no channel that could go
    ├── ReportError    the JSON report of an earlier run: missing, not JSON, of another kind
    ├── StateError     the state or the moments of an earlier run: unreadable, or of a run that asked for something else
    ├── ProcessError   another process of a run under torchrun failed or is gone
    └── OutputError    the result can't be written

A message names the file, tensor or option, says what was expected, and what to do. Everything else that is raised is a
defect of this package and stays a traceback.
"""


class ThinetError(Exception):
    """Base of every error that is the user's to mend."""


class ModelError(ThinetError):
    """The model file can't be read, or ONNX Runtime can't run it."""


class DataError(ThinetError):
    """The calibration or test data doesn't fit the model."""


class OptionError(ThinetError):
    """An option has a value that can't be used."""


class TargetError(ThinetError):
    """The target lies below what removing every removable channel leaves."""


class NothingToPruneError(ThinetError):
    """No channel of the model can be removed (the message says why)."""


class ReportError(ThinetError):
    """The report of an earlier run can't be read."""


class StateError(ThinetError):
    """What an earlier run kept can't be read, or belongs to another run."""


class ProcessError(ThinetError):
    """Another process of this run failed, or can't be reached any more."""


class OutputError(ThinetError):
    """The result can't be written where it was asked for."""
