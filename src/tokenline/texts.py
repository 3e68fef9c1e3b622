"""Read text files of people: UTF-8 whatever the machine's locale, with a byte order mark or without."""

from __future__ import annotations

import codecs
from pathlib import Path

from tokenline.errors import TokenlineError

# UTF-32's mark begins as UTF-16's does.
_OTHERS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path, refuse: type[TokenlineError]) -> str:
    """Return a file's text.

    Raises:
        TokenlineError: of the kind `refuse`: it cannot be read, or is not UTF-8; the text names the file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise refuse(f"{path}: {error.strerror}") from error
    other = next((name for mark, name in _OTHERS.items() if raw.startswith(mark)), "")
    if other or b"\0" in raw:
        raise refuse(f"{path}: it is {other or 'UTF-16, or no text'}; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise refuse(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from None
