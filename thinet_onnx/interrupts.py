"""Ctrl-C: a line and exit code 130 at any moment, without a traceback.

While the command starts, and libraries are imported, the process may end on the spot. Once there may be files to clear away,
KeyboardInterrupt is raised as ever. Another one after that has nothing left to stop.
"""

import os
import signal
import threading
from types import FrameType

CODE = 130
MESSAGE = "thinet-onnx: interrupted"
LINK = "THINET_ONNX_LINK"  # in the environment of processes that `linked` started; their number comes first


def start() -> None:
    """From now on Ctrl-C ends the process on the spot; nothing is done where it is handled or ignored already."""
    if _ours(signal.default_int_handler):
        signal.signal(signal.SIGINT, _end)


def raise_from_now() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt."""
    if _ours(_end):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def silent() -> bool:
    """Whether this is one of several processes that `linked` started, and the first one speaks for all."""
    return not os.environ.get(LINK, "0").startswith("0")


def _ours(handler: object) -> bool:
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is handler


def _end(_number: int, _frame: FrameType | None) -> None:
    if not silent():
        os.write(2, f"{MESSAGE}\n".encode())
    os._exit(CODE)
