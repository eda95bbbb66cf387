"""How the text of one document gets out of its file: text, Markdown, Word and PDF.

Here: which files of a folder are documents, reading a file's bytes within its folder and size limit, decoding, the one
normal form of a text with its hash and word count, and whether a text may be judged. Not here: tables and YAML
(`data_files`), whose essay a text is (`essays`), and what a request needs (`intake`).

The files are untrusted. Nothing outside the given folder is read (a link that leads out is refused), and sizes are
checked before reading.
"""

import hashlib
import io
import logging
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import MAX_ESSAY_CHARACTERS
from cj_pipeline.workflow.problems import name_in

DOCUMENT_SUFFIXES: Final = (".txt", ".md", ".docx", ".pdf")
MAX_DOCUMENT_BYTES: Final = 10 * 1024 * 1024
_MAX_UNPACKED_BYTES: Final = 100 * 1024 * 1024
_OTHER_DOCUMENTS: Final = (".doc", ".docm", ".odt", ".rtf", ".pages")
"""Files that are essays in a format not read here: passing them over would lose a pupil in silence."""
_SAVE_AS: Final = "save it as .docx, .pdf, .txt or .md"


# --- the normal form of a text -----------------------------------------------------------------------------------


def normalise_text(text: str) -> str:
    r"""The normal form of a text: what is stored, hashed, compared and judged.

    Line ends become ``\n``; byte order marks (U+FEFF) go, wherever they are; characters are composed (Unicode NFC);
    white space at the end of each line and blank lines at either end go. Applying it again changes nothing.
    """
    text = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
    lines = unicodedata.normalize("NFC", text).split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def text_sha256(text: str) -> str:
    """SHA-256, as 64 hex digits, of the UTF-8 bytes of the text's normal form."""
    return hashlib.sha256(normalise_text(text).encode("utf-8")).hexdigest()


def word_count(text: str) -> int:
    """How many runs of characters between white space hold a letter or a digit."""
    return sum(any(character.isalnum() for character in run) for run in text.split())


# --- files -------------------------------------------------------------------------------------------------------


def documents_in(folder: Path, root: Path, problems: list[str]) -> list[Path]:
    """The documents directly in a folder, by name; notes those in a format that is not read.

    Hidden files, Office lock files (`~$x.docx`), README files and files of other kinds are passed over.
    """
    documents = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{name_in(folder, root)}: cannot be listed ({error.strerror})") from None
    for path in entries:
        if path.name.startswith((".", "~$")) or path.stem.lower() == "readme" or path.is_dir():
            continue
        suffix = path.suffix.lower()
        if suffix in DOCUMENT_SUFFIXES:
            documents.append(path)
        elif suffix in _OTHER_DOCUMENTS:
            problems.append(f"{name_in(path, root)}: {suffix} files are not read: {_SAVE_AS}")
    return documents


def inside(path: Path, root: Path) -> Path:
    """The path with every link followed, if that stays inside `root`."""
    try:
        resolved = path.resolve()
        if resolved.is_relative_to(root.resolve()):
            return resolved
    except (OSError, RuntimeError, ValueError):
        raise InputError(f"{name_in(path, root)}: leads nowhere (a circle of links, or no file name)") from None
    raise InputError(f"{name_in(path, root)}: leads out of the folder: put a copy of the file inside")


def read_bytes(path: Path, root: Path, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """What a file inside `root` holds, if that is not more than `limit` bytes."""
    resolved, name = inside(path, root), name_in(path, root)
    if not resolved.exists():
        raise InputError(f"{name}: is missing: add it, or correct the name")
    # a pipe would never end
    if not resolved.is_file():
        raise InputError(f"{name}: is not a file")
    try:
        with resolved.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise InputError(f"{name}: is larger than {limit // 1024**2} MB: remove what is not text, or split it")
    return data


def decoded(data: bytes, name: str) -> str:
    """UTF-8 bytes as text, without a byte order mark."""
    try:
        # not utf-8-sig: its offsets do not count the byte order mark
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte offset {error.start}): save it as UTF-8") from None


def read_document(path: Path, root: Path) -> str:
    """A document's text in normal form."""
    name = name_in(path, root)
    readers: dict[str, Callable[[bytes, str], str]] = {".docx": _docx_text, ".pdf": _pdf_text}
    read = readers.get(path.suffix.lower(), decoded)
    return checked_text(read(read_bytes(path, root), name), name)


def checked_text(raw: str, where: str) -> str:
    """The text in normal form, if it may be judged."""
    if "\0" in raw:
        raise InputError(f"{where}: contains NUL characters: save it again as plain UTF-8 text")
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError:
        # a PDF may claim half of a surrogate pair
        raise InputError(f"{where}: contains characters that are no text: save it as plain UTF-8 text") from None
    text = normalise_text(raw)
    if not text.strip():
        raise InputError(f"{where}: has no text: add the text, or remove it")
    if len(text) > MAX_ESSAY_CHARACTERS:
        raise InputError(f"{where}: has {len(text)} characters, at most {MAX_ESSAY_CHARACTERS} are read: shorten it")
    return text


# --- Word --------------------------------------------------------------------------------------------------------

_OLE_MAGIC: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_GONE: Final = (f"{_W}del", f"{_W}moveFrom", _FALLBACK)
_NOT_INLINE: Final = (*_GONE, f"{_W}pPr", f"{_W}rPr", f"{_W}txbxContent")
_SIGNS: Final = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def _docx_text(data: bytes, name: str) -> str:
    """The body's paragraphs in document order, those in tables, content controls and text boxes included.

    Tracked changes count as accepted. Headers, footers, footnotes and comments are not the essay.
    """
    import docx

    if data.startswith(_OLE_MAGIC):
        raise InputError(f"{name}: is protected by a password, or an old .doc file: {_SAVE_AS}, without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            unpacked = sum(entry.file_size for entry in package.infolist())
        if unpacked <= _MAX_UNPACKED_BYTES:
            body = docx.Document(io.BytesIO(data)).element.body
            paragraphs = [p for p in body.iter(f"{_W}p") if next(p.iterancestors(*_GONE), None) is None]
            return "\n".join("".join(_inline_text(paragraph)) for paragraph in paragraphs)
    except Exception:  # noqa: BLE001 - a damaged file can raise anything, and its words may be in the message
        raise InputError(f"{name}: cannot be opened as a Word document: open it in Word and {_SAVE_AS}") from None
    raise InputError(f"{name}: unpacks to more than {_MAX_UNPACKED_BYTES // 1024**2} MB: remove pictures")


def _inline_text(element: Any) -> Iterator[str]:
    for child in element:
        if child.tag in _NOT_INLINE:
            continue
        if child.tag == f"{_W}t":
            yield child.text or ""
        elif child.tag in _SIGNS:
            yield _SIGNS[child.tag]
        else:
            yield from _inline_text(child)


# --- PDF ---------------------------------------------------------------------------------------------------------


def _pdf_text(data: bytes, name: str) -> str:
    """The text of each page, in order."""
    import pypdf

    # its warnings quote the file's bytes
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    locked = False
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        # an empty password opens what is only locked against printing
        locked = reader.is_encrypted and reader.decrypt("") == pypdf.PasswordType.NOT_DECRYPTED
        pages = [] if locked else [page.extract_text() for page in reader.pages]
    except Exception:  # noqa: BLE001 - a damaged file can raise anything, and its words may be in the message
        raise InputError(f"{name}: cannot be read as a PDF: export it again, or {_SAVE_AS}") from None
    if locked:
        raise InputError(f"{name}: is protected by a password: save it without one")
    if not "".join(pages).strip():
        raise InputError(f"{name}: is a PDF without text, perhaps a scan: run text recognition (OCR), or type it")
    return "\n".join(pages)
