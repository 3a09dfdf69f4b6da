"""Unpacks tar and zip archives: regular files only, written by `_write` below, into folders made here."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from prompted_clip.console import MAY_PASS
from prompted_clip.errors import UserError

# Photographs hardly compress. An archive that would grow to more than both is no archive of images.
MAX_RATIO, MAX_SMALL = 50, 1 << 30
MAX_MEMBERS = 5_000_000
MAX_HEADER = 1 << 20  # bytes that tarfile reads at once: names, never what a file holds
COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
# Else it is the archive's fault.
OF_THE_DISK = {*MAY_PASS, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}

Member = tuple[str, int, IO[bytes] | None]  # name, size, content; None for a folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar (plain, gz, bz2, xz) or zip into `folder`, which is created.

    Raises:
        ValueError: the archive is damaged, unpacks to too much, or holds a link, a device, or a path that
            leads out of the folder. `folder` may then hold a part of it.
        OSError: the file cannot be read or written, such as on a full disk.
    """
    limit = max(MAX_SMALL, MAX_RATIO * archive.stat().st_size)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(archive, "rb") as file:  # zipfile.is_zipfile also takes a tar that ends with a zip
            magic = file.read(2)
            file.seek(0)
            size = 0
            for count, member in enumerate(_zip(file) if magic == b"PK" else _tar(file, magic)):
                size += member[1]
                if size > limit or count >= MAX_MEMBERS:
                    raise UserError(
                        f"{archive.name} would unpack to {size / 1e9:.1f} GB or more in {count + 1:,} files, "
                        "too much for its size"
                    )
                _write(*member, folder)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # tarfile, zipfile and the decompressors raise what they stumble over
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            error.filename = error.filename or str(archive)
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{archive.name} is damaged, unsafe or no archive ({reason})") from error


def _zip(file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as source:
        for member in source.infolist():
            if member.is_dir():
                yield member.filename, 0, None
            else:  # a link becomes a file that holds its target
                with source.open(member) as content:
                    yield member.filename, member.file_size, content


def _tar(file: IO[bytes], magic: bytes) -> Iterator[Member]:
    content: Any = _ShortReads(COMPRESSED[magic](file) if magic in COMPRESSED else file)
    with tarfile.open(fileobj=content, mode="r:") as source:
        for member in source:
            vars(source)["members"] = []  # else it remembers them all
            if member.isdir():
                yield member.name, 0, None
            elif member.isreg() and not member.issparse():
                yield member.name, member.size, source.extractfile(member)
            else:
                raise ValueError(f"it holds {member.name[:200]!r}, which is no regular file")


class _ShortReads:
    """A file of which no header can have everything read into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def _write(name: str, size: int, content: IO[bytes] | None, folder: Path) -> None:
    """Writes one file or makes one folder. There are no links below `folder`, as nothing here makes any."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or any(":" in part for part in parts if os.name == "nt"):
        raise ValueError(f"it holds {name[:200]!r}, which leads out of it")
    path = folder.joinpath(*parts)
    if content is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of two members with one name, the last counts
    with open(path, "xb") as file:
        reader: Any = _Exactly(size, content)
        shutil.copyfileobj(reader, file)


class _Exactly:
    """The content of a member, which must be as long as its header says."""

    def __init__(self, size: int, content: IO[bytes]) -> None:
        self.left, self.content = size, content

    def read(self, size: int = -1) -> bytes:
        chunk = self.content.read(size)
        self.left -= len(chunk)
        if self.left < 0 or (self.left and not chunk):
            raise ValueError("a file in it is not as long as it says")
        return chunk
