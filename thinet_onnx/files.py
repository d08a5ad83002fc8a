"""Small files that people write or keep: read whole, and only if they are files."""

import errno
import os
import stat
from pathlib import Path

_LARGEST = 1 << 30  # bytes; a report is a few megabytes


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The text of a file; a pipe or a device might have no end, and is not read.

    Raises:
        OSError: it can't be read, is no file, or is far too large; `strerror` is for people.
        UnicodeDecodeError: it is no text.
    """
    found = Path(path).stat()
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe")
    if found.st_size > _LARGEST:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes")
    return Path(path).read_text(encoding=encoding)
