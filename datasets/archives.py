"""Unpacking archives of strangers: nothing leaves the folder, no links out, no devices, no bombs."""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

# Photographs do not shrink. An archive that would grow to more than this is no dataset.
MOST_GROWTH, SMALL = 50, 1 << 30

JUNK = ("__MACOSX", ".DS_Store", "._*")  # what a Mac puts into archives

DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,  # zipfile's, of a compression that it does not know
)


class Unsafe(ValueError):
    """The archive is damaged, or tries what an archive of images has no reason to."""


def unpack(
    archive: Path,
    folder: Path,
    inner: tuple[str, ...] = (),
    inner_folders: bool = False,
    trusted: bool = False,
) -> int:
    """Unpacks a tar (plain, gz, bz2, xz) or zip into `folder`, which is made; returns the number of files.

    Args:
        inner: patterns of archives in it, which are unpacked where they lie and deleted.
        inner_folders: each of them into a folder of its own name, without ending.
        trusted: its checksum was right, so that an unusual end is no sign of a broken file.

    Raises:
        Unsafe: it holds a path or a link out of the folder, or a device, grows beyond measure, is damaged or
            cut off. `folder` then holds rubbish.
        OSError: the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = 0
    try:
        with open(archive, "rb") as file:  # zipfile.is_zipfile would take a tar that ends with a zip for one
            is_zip = file.read(2) == b"PK"
        members = _zip(archive, folder) if is_zip else _tar(archive, folder, trusted)
        for path in members:
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in inner):
                place = path.parent / path.name.partition(".")[0] if inner_folders else path.parent
                files += unpack(path, place, trusted=trusted)
                path.unlink()
            else:
                files += 1
    except DAMAGED as error:
        raise Unsafe(f"{archive.name} is damaged or no archive ({' '.join(str(error).split())})") from error
    return files


class _Limit:
    """Counts what an archive says that it holds, before it is written."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.total = archive, 0
        self.growth = max(SMALL, MOST_GROWTH * archive.stat().st_size)
        self.free = shutil.disk_usage(folder).free

    def add(self, size: int) -> None:
        self.total += size
        if self.total > self.growth:
            raise Unsafe(
                f"{self.archive.name} would unpack to more than {self.growth / 1e9:.0f} GB, which is "
                f"{MOST_GROWTH} times its size: no archive of images does"
            )
        if self.total > self.free:
            raise OSError(
                28, f"{self.archive.name} needs {self.total / 1e9:.1f} GB, {self.free / 1e9:.1f} are free"
            )


def check_name(name: str, archive: Path) -> None:
    """Refuses names that are absolute or lead upwards, on any system."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name or "\\" in name:
        raise Unsafe(f"{archive.name} holds {name!r}, which leads out of its folder")


def _is_junk(name: str) -> bool:
    return any(fnmatch.fnmatch(part, pattern) for part in name.split("/") for pattern in JUNK)


def _zip(archive: Path, folder: Path) -> Iterator[Path]:
    limit = _Limit(archive, folder)
    with zipfile.ZipFile(archive) as source:
        members = source.infolist()
        for member in members:  # all are looked at before any is written
            name = member.orig_filename if "\\" in member.orig_filename else member.filename
            check_name(name, archive)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Unsafe(f"{archive.name} holds {name!r}, which is a link or a device")
            if member.flag_bits & 1:
                raise Unsafe(f"{archive.name} is encrypted")
            limit.add(member.file_size)
        with tqdm(
            total=limit.total, desc=f"Unpacking {archive.name}", unit="B", unit_scale=True, delay=1
        ) as bar:
            for member in members:
                if not _is_junk(member.filename):
                    path = Path(source.extract(member, folder))
                    if not member.is_dir():
                        yield path
                bar.update(member.file_size)


class _Reader:
    """A stream that remembers what was read last: a tar ends with a block of zeros."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.last = stream, b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self.last = self.stream.read(size)
        return self.last


def _open(archive: Path, raw: Any) -> Any:
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if start.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(raw)
    return raw


def _tar(archive: Path, folder: Path, trusted: bool) -> Iterator[Path]:
    limit = _Limit(archive, folder)
    bar = tqdm(
        total=archive.stat().st_size, desc=f"Unpacking {archive.name}", unit="B", unit_scale=True, delay=1
    )
    with bar, open(archive, "rb") as raw, _open(archive, raw) as stream:
        reader = _Reader(stream)
        with tarfile.open(fileobj=reader, mode="r:") as source:  # type: ignore[call-overload]
            for member in source:
                check_name(member.name, archive)
                if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                    raise Unsafe(f"{archive.name} holds {member.name!r}, which is a device")
                limit.add(member.size)
                bar.update(raw.tell() - bar.n)
                if _is_junk(member.name):
                    continue
                try:
                    tarfile.data_filter(member, str(folder))
                except tarfile.FilterError as error:
                    raise Unsafe(f"{archive.name} holds {member.name!r}: {error}") from error
                source.extract(member, folder, filter="data")
                if not member.isdir():
                    yield folder / member.name
        if not trusted and (len(reader.last) != 512 or any(reader.last)):
            raise Unsafe(f"{archive.name} has no end: it is cut off")
        while stream.read(1 << 20):  # to the end, where gzip and xz have their checksums
            pass
