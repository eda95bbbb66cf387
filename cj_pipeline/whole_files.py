"""Whole files only: a reader sees the old content or the new, never half of it, and no crash changes that.

For local files. On object stores one PUT does the same; what goes there is the lake's business.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside, sync, rename; the file is readable by all, and nothing is left behind if it fails.

    Args:
        path: the file to replace or make; its folder exists.
        write: writes the content into the binary stream it is given.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
