"""`DATASET.NAME folder`: own photos, one folder per class; and what it shares with `csv` and `hub`.

The settings are those of `DATASET.OWN`: see `configs/datasets/folder.yaml` and docs/own_data.md.
"""

from __future__ import annotations

import difflib
import os
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from yacs.config import CfgNode

from dassl.config.influence import place_of_own_data
from dassl.data import own_split, splits
from dassl.data.class_names import brief, check_class_names, check_name, check_path, few
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.few_shot_dataset import FewShotDataset
from dassl.data.folder_index import IMAGE_SUFFIXES, listing, rows_of_folders
from dassl.data.packed_rows import Row, Rows, unpack_names
from dassl.data.splits import Shuffle, Split
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.escaping import printable

Kind = TypeVar("Kind")

PARTS = Split._fields  # train, val, test
UNASSIGNED = -1  # part of a photo where the data leaves the split to us
# Images that are not read: of phones, cameras and drawing programs, and the rest of what Pillow opens.
OTHER_KINDS = (
    *(
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
        ".svg",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".rw2",
        ".raf",
    ),
    *(
        ".avifs",
        ".jpf",
        ".j2c",
        ".jpc",
        ".psd",
        ".ico",
        ".icns",
        ".cur",
        ".pcx",
        ".dcx",
        ".pcd",
        ".eps",
        ".ps",
    ),
    *(".sgi", ".rgb", ".rgba", ".bw", ".ras", ".dds", ".pfm", ".xbm", ".xpm", ".wmf", ".emf", ".blp", ".icb"),
    *(".vda", ".vst", ".fit", ".fits", ".ftc", ".ftu", ".gbr", ".im", ".iim", ".msp", ".pxr", ".fli", ".flc"),
)
OTHER = "images of a kind that is not read"
CONVERT = "Convert them, as with ImageMagick: magick mogrify -format jpg *.heic (which needs libheif)"
FEWSHOT_FOLDER = "split_fewshot"  # the cache of `FewShotDataset`, which is no class


def register_as(name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Registers a class under a `DATASET.NAME`, which is also its name in few-shot lists and messages."""

    def register(kind: type[Kind]) -> type[Kind]:
        kind.__name__ = name
        return DATASET_REGISTRY.register(kind)

    return register


class ClassNames(CfgNode):
    """`DATASET.OWN.CLASS_NAMES`: keys and names stay as they are written, also those that are numbers."""

    verbatim = True

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(str(key), value)


class Photo(NamedTuple):
    """An image as the user's own table says it."""

    path: str  # from `image_dir`, with "/"
    label: str  # the class, as the data calls it
    part: str  # train, val or test; "" where the data leaves the split to us


class OwnDataset(FewShotDataset):
    """Base class of `folder`, `csv` and `hub`: turns a list of photos into a split that stays the same.

    If the data defines a split, it is used. Otherwise each class is split by the shares `DATASET.OWN.SPLIT`,
    in an order that depends only on the file names in the class (not on the seed, the file system or other
    classes). That split is saved beside the data and used from then on: photos that are added later are
    skipped, with a message. Labels follow the sorted class names.

    Raises:
        FileNotFoundError: no data there, or photos that the saved split lists are gone.
        ValueError: a wrong setting, or data that cannot be meant.
    """

    def __init__(self, cfg: Any) -> None:
        self.own = cfg.DATASET.OWN
        self.subsample = cfg.DATASET.SUBSAMPLE_CLASSES
        self.template = self.own.TEMPLATE
        self._check_settings()
        super().__init__(cfg)

    def photos(self) -> Rows | list[Photo]:
        """All photos: packed, in the order of their paths, or a list in any order.

        Packed rows are path, number of the part (`UNASSIGNED` where the data leaves the split to us), and
        class as the data calls it.
        """
        raise NotImplementedError

    def find_split(self, shuffle: Shuffle) -> Split:
        """The split of the data, or the saved one, or a new one; without `shuffle`, which the run seeds."""
        photos = _packed(self.photos())
        _check_paths(photos, self.dataset_dir)
        part_of = np.array([part for _, part, _ in photos.groups])[photos.group_of]
        if (part_of != UNASSIGNED).any():
            parts: own_split.Parts = {
                name: np.flatnonzero(part_of == part) for part, name in enumerate(PARTS)
            }
            return self._labelled(photos, parts, self.dataset_dir)
        if os.path.exists(self.split_path):
            return self._saved_split(photos)
        parts = self._divide(photos)
        split = self._labelled(photos, parts, self.dataset_dir)
        shares = list(self.own.SPLIT)
        try:
            content = {**split._asdict(), "shares": shares}
            splits.write_shared_json(content, self.split_path, self.dataset_dir, replace=False)
            own_split.save(self.split_path, photos, shares, parts)
            print(f"Saved split to {self.split_path}")
        except FileExistsError:  # another process was faster: both use its split
            return self._saved_split(photos)
        except OSError as error:
            print(f"Split not saved (it is computed at each start, the same for the same photos): {error}")
        return split

    def _saved_split(self, photos: Rows) -> Split:
        """The file decides the part of each photo; the data and configuration decide the names of classes."""
        print(f"Reading split from {self.split_path}")
        known = own_split.load(self.split_path, photos)
        if known:
            self._check_shares(known[0])
        parts = known[1] if known else self._read_split(photos)
        if added := len(photos) - sum(map(len, parts.values())):
            listed = np.zeros(len(photos), dtype=bool)
            listed[np.concatenate([*parts.values()])] = True
            print(
                f"Not used: {added} photos that came after the split was saved, the first: "
                f"{photos[int(listed.argmin())][0]}. {self._anew}"
            )
        return self._labelled(photos, parts, self.split_path)

    def _read_split(self, photos: Rows) -> own_split.Parts:
        saved = splits.load_split(self.split_path, names=False)
        shares = splits.read_json(self.split_path).get("shares")
        self._check_shares(shares)
        position_of = {path: position for position, (path, _, _) in enumerate(photos)}
        listed = [path for rows in saved for path, _, _ in rows]
        if removed := sorted({*listed} - position_of.keys()):
            raise MissingFileError(
                f"{self.split_path} lists {len(listed)} photos, of which {len(removed)} are gone, the first: "
                f"{os.path.join(self.image_dir, removed[0])}. Put them back. {self._anew}"
            )
        parts = {
            part: np.array([position_of[path] for path, _, _ in rows], dtype=np.int64)
            for part, rows in zip(PARTS, saved, strict=True)
        }
        own_split.save(self.split_path, photos, shares, parts)
        return parts

    def _check_shares(self, shares: list[float] | None) -> None:
        if shares is not None and shares != list(self.own.SPLIT):
            raise UserError(
                f"DATASET.OWN.SPLIT is {list(self.own.SPLIT)}, but the saved split was made by {shares}. "
                f"Set that, or: {self._anew}"
            )

    @property
    def _anew(self) -> str:
        return f"To split anew, delete {self.split_path}."

    def _divide(self, photos: Rows) -> own_split.Parts:
        """Splits each class by the shares. The smallest classes: one photo trains, two train and test."""
        p_train, p_val, _ = self.own.SPLIT
        print("Splitting into {:.0%} train, {:.0%} val, and {:.0%} test".format(*self.own.SPLIT))
        parts: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
        single = []
        for label, positions in photos.by([label for _, _, label in photos.groups]).items():
            members = positions.tolist()
            random.Random(f"own split of {label}").shuffle(members)
            n_train = max(1, min(round(len(members) * p_train), len(members) - 1))
            n_val = max(0, min(round(len(members) * p_val), len(members) - n_train - 1))
            for part, each in zip(PARTS, np.split(members, [n_train, n_train + n_val]), strict=True):
                parts[part].append(each)
            if len(members) == 1:
                single.append(label)
        if single:
            print(f"Only for training: {len(single)} classes of a single photo, the first: {single[0]!r}")
        return {part: np.concatenate(each) for part, each in parts.items()}

    # Labels and their names -------------------------------------------------------------------------------

    def _labelled(self, photos: Rows, parts: own_split.Parts, source: str) -> Split:
        taken = {part: photos.take(positions) for part, positions in parts.items()}
        labels = {part: {label for _, _, label in rows.groups} for part, rows in taken.items()}
        classes = sorted(set().union(*labels.values()))
        if not labels["test"]:
            raise UserError(
                f"{source}: there are no photos to test with. Add some to the classes or to test."
            )
        for label in classes:
            if label not in labels["train"]:
                raise UserError(
                    f"{source}: class {label!r} has photos, but none in train. Add one there, or take it out."
                )
        names = self._class_names(classes)
        self.novel_labels = self._novel_labels(classes, names)
        splits.select_labels(range(len(classes)), self.subsample, self.novel_labels)
        label_of = {label: number for number, label in enumerate(classes)}

        def rows(taken: Rows) -> Rows:
            numbers = [(folder, label_of[label]) for folder, _, label in taken.groups]
            groups = [(folder, number, names[number]) for folder, number in numbers]
            return Rows(groups, taken.group_of, taken.names)

        return Split(*(rows(taken[part]) for part in PARTS))

    def _class_names(self, classes: Sequence[str]) -> list[str]:
        """The name of each class in the sentence: the config's, or what the data calls it."""
        mapping = {}
        for key, name in self.own.CLASS_NAMES.items():
            if isinstance(name, Mapping):
                raise UserError(
                    f"DATASET.OWN.CLASS_NAMES has a section {key!r}: a class whose name holds a dot cannot "
                    "be named on the command line. Write it into the dataset's yaml file, in quotes."
                )
            mapping[plain(key)] = checked(f"CLASS_NAMES of {key!r}", name)
        listed = [checked(f"CLASS_LIST[{k}]", name) for k, name in enumerate(self.own.CLASS_LIST)]
        known = set(classes)
        for key in mapping:
            if key not in known:
                raise UserError(f"DATASET.OWN.CLASS_NAMES names {key!r}; {_no_class(key, classes)}")
        if listed and len(listed) != len(classes):
            raise UserError(
                f"DATASET.OWN.CLASS_LIST has {len(listed)} names; allowed is one for each of the "
                f"{len(classes)} classes, in the order {few(classes)}."
            )
        names = listed or [mapping.get(label, label) for label in classes]
        check_class_names(
            dict(zip(classes, names, strict=True)),
            self.dataset_dir,
            "Give each class a name of its own in DATASET.OWN.CLASS_NAMES or CLASS_LIST.",
        )
        if listed and list(classes) != sorted(classes, key=_by_numbers):
            pairs = [f"{label} is {name}" for label, name in zip(classes, names, strict=True)]
            print(f"CLASS_LIST names the classes in their order as texts, 10 before 2: {few(pairs)}")
        return names

    def _novel_labels(self, classes: Sequence[str], names: Sequence[str]) -> list[int]:
        """The labels of NOVEL_CLASSES, which may have the names of the data or of the configuration."""
        labels = {
            **{name: k for k, name in enumerate(names)},
            **{label: k for k, label in enumerate(classes)},
        }
        novel = [checked(f"NOVEL_CLASSES[{k}]", name) for k, name in enumerate(self.own.NOVEL_CLASSES)]
        for name in novel:
            if name not in labels:
                raise UserError(f"DATASET.OWN.NOVEL_CLASSES names {name!r}; {_no_class(name, list(labels))}")
        return sorted({labels[name] for name in novel})

    def _check_settings(self) -> None:
        unset = next((key for key, value in self.own.items() if value is None), None)
        if unset is not None:
            raise UserError(f"DATASET.OWN.{unset} is None. Leave it out for the default.")
        if self.own.TEMPLATE.count("{}") != 1:
            raise UserError(
                f"DATASET.OWN.TEMPLATE is {self.own.TEMPLATE!r}; it needs {{}} once, where the class name "
                'is to stand, as in "a photo of a {}.".'
            )
        shares = list(self.own.SPLIT)
        fit = len(shares) == 3 and all(type(share) in (int, float) and share >= 0 for share in shares)
        if not fit or abs(sum(shares) - 1) > 1e-6 or not shares[0] or not shares[2]:
            raise UserError(
                f"DATASET.OWN.SPLIT is {shares}; allowed are three shares that add up to 1, for train, val "
                "and test, with train and test above 0, such as [0.5, 0.2, 0.3]."
            )
        if self.own.CLASS_LIST and self.own.CLASS_NAMES:
            raise UserError("DATASET.OWN.CLASS_NAMES and CLASS_LIST are both set; set one of them.")


def plain(name: object) -> str:
    """A name in Unicode's composed form: file systems differ in how they store an ü."""
    return unicodedata.normalize("NFC", str(name))


def checked(key: str, name: object) -> str:
    """A name of the configuration's; raises a ValueError for what yaml made something else of."""
    check_name(name, f"DATASET.OWN.{key}", "Write it without.")
    return plain(name)


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(len(part.lstrip("0")) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def _order(path: str) -> tuple[str, str]:
    """A key by which paths are sorted the same, however the file system composes them."""
    return plain(path), path


def _packed(photos: Rows | list[Photo]) -> Rows:
    """Path, number of the part, and class of each photo, sorted by path."""
    if isinstance(photos, Rows):
        return photos
    ordered = sorted(photos, key=lambda photo: _order(photo.path))
    return Rows.pack(
        (path, PARTS.index(part) if part else UNASSIGNED, label) for path, label, part in ordered
    )


def _in_order(photos: Rows) -> Rows:
    """Photos of sorted folders, by `_order`; those of each folder are sorted, but maybe not by that."""
    folders = {plain(folder) for folder, _, _ in photos.groups}
    if photos.names.isascii() and len(folders) == len(photos.groups):
        return photos
    keys = [_order(path) for path, _, _ in photos]
    return photos.take(np.array(sorted(range(len(keys)), key=keys.__getitem__)))


def _check_paths(photos: Rows, where: str) -> None:
    if not (
        photos.names.decode("utf-8", "surrogatepass") + "".join(folder for folder, _, _ in photos.groups)
    ).isprintable():
        for path, _, _ in photos:
            check_path(path, where)


def _no_class(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are {few(known)}."
    return f"there is no such class. {hint}"


@register_as("folder")
class OwnFolder(OwnDataset):
    """One folder of photos per class, or such folders in each of train, val and test.

    Train, val and test are parts of a split if they are all the folders there are and hold folders, but no
    photos; otherwise they are classes.
    """

    split_file = "split_own.json"

    def __init__(self, cfg: Any) -> None:
        self.dataset_dir = place_of_own_data(cfg.DATASET)
        if not os.path.isdir(self.dataset_dir):
            raise MissingFileError(
                f"DATASET.OWN.PATH is {cfg.DATASET.OWN.PATH!r} and DATASET.ROOT {cfg.DATASET.ROOT!r}: there "
                f"is no folder {self.dataset_dir}. Give the one that holds a folder of photos for each class."
            )
        super().__init__(cfg)

    def photos(self) -> Rows:
        place, skipped = self.dataset_dir, Skipped()
        folders = self._subfolders(place, skipped)
        classes: list[Row] = [(name, UNASSIGNED, plain(name)) for name in folders]
        if self._is_split(place, folders):
            classes = [
                (f"{part}/{name}", PARTS.index(part), plain(name))
                for part in folders
                for name in self._subfolders(os.path.join(place, part), skipped)
            ]
        photos = _in_order(rows_of_folders(place, sorted(classes, key=lambda row: _order(f"{row[0]}/"))))
        for path, _, _ in classes:
            self._check_class(path, skipped)
        if not photos:
            raise UserError(
                f"{place} has no photos in folders of classes. Expected is {os.path.join(place, 'CLASS')} "
                f"with files such as *.jpg ({', '.join(IMAGE_SUFFIXES)}), or the same in train, val and test."
            )
        print(f"{len(photos)} photos of {len({row[2] for row in photos.groups})} classes in {place}{skipped}")
        if others := skipped.names.get(OTHER):
            first = f"{printable(min(others))} ({len(others)} in all)"
            print(f"Warning: not used, as of a kind that is not read: {first}. {CONVERT}.")
        return photos

    def _subfolders(self, place: str, skipped: Skipped) -> list[str]:
        names = []
        for entry in list(os.scandir(place)):
            if entry.name in (self.split_file, FEWSHOT_FOLDER, ".folder_index") and place == self.dataset_dir:
                continue
            if entry.name.startswith("."):
                skipped.add("hidden", entry.name)
            elif entry.is_dir():
                names.append(entry.name)
            else:
                skipped.add("not in the folder of a class", entry.name)
        return sorted(names)

    def _is_split(self, place: str, folders: Sequence[str]) -> bool:
        """Whether the folders are train, val and test rather than classes."""
        holds = {name: _holds(os.path.join(place, name)) for name in folders if name in PARTS}
        parts = [name for name, (photos, subfolders) in holds.items() if subfolders and not photos]
        if not parts:
            return False
        others = [name for name in folders if name not in parts and holds.get(name) != (False, False)]
        if not others and {"train", "test"} <= set(parts):
            return True
        problem = f"and {few(others)}" if others else "but not both train and test"
        raise UserError(
            f"{place} holds {' and '.join(parts)} with folders in it, {problem}. Allowed are folders of "
            "classes, or only train, test and, if you like, val with folders of classes in them."
        )

    def _check_class(self, path: str, skipped: Skipped) -> None:
        """Looks at what is no photo in the folder of a class."""
        place, others = os.path.join(self.dataset_dir, path), []
        listed = listing(place)
        for name in unpack_names(listed.others):
            where, file = f"{path}/{name}", os.path.join(place, name)
            if name.startswith("."):
                skipped.add("hidden", where)
                continue
            is_other = name.lower().endswith(OTHER_KINDS) and os.path.isfile(file)
            skipped.add(OTHER if is_other else "no images", where)
            others += [] if os.path.isdir(file) else [where]
        if others and not listed.images:
            raise UserError(
                f"{place} holds no images of a kind that is read "
                f"({', '.join(IMAGE_SUFFIXES)}), but {brief(min(others))}. {CONVERT}; or take the folder out."
            )
        if not listed.images:
            skipped.add("classes without photos", path)


def _holds(place: str) -> tuple[bool, bool]:
    """Whether a folder directly holds photos, and whether it holds folders."""
    entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
    photos = any(entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file() for entry in entries)
    return photos, any(entry.is_dir() for entry in entries)


class Skipped:
    """Counts files and folders that are not used, for one line of output."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        self.names[reason].append(name)

    def __str__(self) -> str:
        if not self.names:
            return ""
        parts = (
            f"{len(found)} {reason} ({printable(min(found))})" for reason, found in sorted(self.names.items())
        )
        return f"; left out: {', '.join(parts)}"
