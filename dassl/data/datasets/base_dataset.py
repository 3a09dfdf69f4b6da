"""What a dataset is to the engine: splits of `Datum`s, and the names of their labels."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from prompted_clip.errors import UserError


class Datum:
    """One image: where it lies, and what it shows.

    The file itself is not looked at; a dataset may have a million of them.

    Args:
        impath: path of the image.
        label: number of its class.
        domain: number of its domain.
        classname: name of its class.

    Raises:
        ValueError: an argument of a wrong type.
    """

    # The four slots save memory; `__dict__`, made only when used, is for attributes that others add.
    __slots__ = ("__dict__", "_classname", "_domain", "_impath", "_label")

    _impath: str
    _label: int
    _domain: int
    _classname: str

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        if not isinstance(impath, str):
            raise UserError(f"Datum: impath is {impath!r}, not a string.")
        if not isinstance(label, Integral) or not isinstance(domain, Integral):
            raise UserError(
                f"Datum of {impath}: label {label!r} and domain {domain!r} must be whole numbers."
            )
        if not isinstance(classname, str):
            raise UserError(f"Datum of {impath}: classname is {classname!r}, not a string.")
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname

    # Few-shot pickles, old and new, hold the four underscored attributes as a plain dict.
    def __getstate__(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("_impath", "_label", "_domain", "_classname")}
        return {**named, **self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class DatasetBase:
    """Splits of a dataset.

    Labels are numbered from 0; their names are those of `train_x`, or of `test` where that is empty.

    Args:
        train_x: labelled training images.
        train_u: unlabelled training images.
        val: images for choosing a model.
        test: images for its final score.
        splits: any further splits; each becomes an attribute under its own name.

    Raises:
        ValueError: there is neither a `train_x` nor a `test` image.
    """

    dataset_dir = ""  # folder of the dataset inside DATASET.ROOT
    domains: Sequence[str] = ()  # names of its domains

    def __init__(
        self,
        train_x: Sequence[Datum] | None = None,
        train_u: Sequence[Datum] | None = None,
        val: Sequence[Datum] | None = None,
        test: Sequence[Datum] | None = None,
        **splits: Sequence[Datum],
    ) -> None:
        labelled = train_x or test
        if not labelled:
            raise UserError(f"{type(self).__name__} has no images: its train_x and its test split are empty.")
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        for name, split in splits.items():
            setattr(self, name, split)
        self._num_classes = self.get_num_classes(labelled)
        self._lab2cname, self._classnames = self.get_lab2cname(labelled)

    @property
    def train_x(self) -> Sequence[Datum] | None:
        return self._train_x

    @property
    def train_u(self) -> Sequence[Datum] | None:
        return self._train_u

    @property
    def val(self) -> Sequence[Datum] | None:
        return self._val

    @property
    def test(self) -> Sequence[Datum] | None:
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """The highest label plus one."""
        return max(_label_names(data_source)) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """The name of each label, and the names in the order of the labels."""
        lab2cname = dict(sorted(_label_names(data_source).items()))
        return lab2cname, list(lab2cname.values())

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Raises a ValueError unless both are non-empty and hold domains of this dataset only."""
        for key, given in (("SOURCE_DOMAINS", source_domains), ("TARGET_DOMAINS", target_domains)):
            unknown = [domain for domain in given if domain not in self.domains]
            if unknown or not given:
                raise UserError(f"DATASET.{key} is {tuple(given)}; choose from {', '.join(self.domains)}.")

    def generate_fewshot_dataset(
        self, *data_sources: Sequence[Datum], num_shots: int = -1, repeat: bool = False
    ) -> Any:
        """Draws `num_shots` images of each label from each source, with Python's global random numbers.

        Labels come in the order of their first appearance. A label with too few images gives all it has and
        uses no random number, or, with `repeat`, gives some of them more than once.

        Returns:
            One list for one source, else a list of lists; the sources themselves if `num_shots` is below 1.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for data_source in data_sources:
            drawn: list[Datum] = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    drawn += random.sample(items, num_shots)
                elif repeat:
                    drawn += random.choices(items, k=num_shots)
                else:
                    drawn += items
            output.append(drawn)
        return output[0] if len(output) == 1 else output

    @staticmethod
    def split_dataset_by_label(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """The images of each label, labels in the order of their first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    @staticmethod
    def split_dataset_by_domain(data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """The images of each domain, domains in the order of their first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups


def _label_names(data_source: Iterable[Datum]) -> dict[int, str]:
    """The name of each label. A source that knows them is not asked for each of its images.

    Such a source has a `label_names()` that gives them.
    """
    known = getattr(data_source, "label_names", None)
    return known() if known is not None else {item.label: item.classname for item in data_source}
