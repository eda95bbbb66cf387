"""Problems of files that people wrote: how they are gathered, and the words that name their places.

Here: going on after a problem so that all are reported together, and what a message may show of an untrusted name or
value. Not here: what counts as a problem; that is for those who read the files.

No message quotes an essay: problems name the file, the row and the remedy. A cell of a table is quoted only if it looks
like a word, because a table with shifted columns has essays anywhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cj_pipeline.core.errors import InputError


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """Turn an `InputError` into a noted problem and go on after the block."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def listed(names: Sequence[str]) -> str:
    """The names as a sentence lists them; there is at least one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shown(name: str) -> str:
    """A file name as a message may show it: no control characters, no bytes that are not text."""
    return name if name.isprintable() else ascii(name)[1:-1]


def name_in(path: Path, root: Path) -> str:
    """The path as a message may show it: from `root` on if it lies there, else only the file's name."""
    return shown(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)
