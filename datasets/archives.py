"""Unpacks tar and zip archives; nothing is written outside of the folder."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path

from prompted_clip.errors import UserError

# Photographs hardly compress. An archive that would grow to more than both is no archive of images.
MAX_RATIO, MAX_SMALL = 50, 1 << 30

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError, OSError)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar (plain, gz, bz2, xz) or zip into `folder`, which is created.

    Raises:
        ValueError: the archive is damaged, unpacks to too much, or holds a link or path that leads out of the
            folder, or a device. `folder` may then hold a part of it.
        OSError: the file cannot be read or written, such as on a full disk.
    """
    limit = max(MAX_SMALL, MAX_RATIO * archive.stat().st_size)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(archive, "rb") as file:  # zipfile.is_zipfile also takes a tar that ends with a zip
            is_zip = file.read(2) == b"PK"
        if is_zip:
            with zipfile.ZipFile(archive) as source:
                _check_size(archive, sum(member.file_size for member in source.infolist()), limit)
                source.extractall(folder)  # drops `..`, drives and links by itself
        else:
            with tarfile.open(archive) as source:
                size = 0
                for member in source:
                    size += member.size
                    _check_size(archive, size, limit)
                    source.extract(member, folder, filter="data")
    except DAMAGED as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(f"{archive.name} is damaged, unsafe or no archive ({error})") from error


def _check_size(archive: Path, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(f"{archive.name} would unpack to {size / 1e9:.1f} GB or more, too much for its size")
