"""Packed rows and Datums made when asked for are the lists that they stand for."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

import dassl.data.datasets.base_dataset as base_dataset
from dassl.data import packed_rows as rows_module
from dassl.data import splits
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.packed_rows import Datums, Rows
from dassl.data.splits import Split
from dassl.utils import set_random_seed

PLAIN = [
    ("b/1.jpg", 1, "bee"),
    ("a/ü 1.jpg", 0, "ant"),
    ("a/2.jpg", 0, "ant"),
    ("3.jpg", 1, "bee"),
    ("b/deep/4.jpg", 2, "cat"),
    ("/elsewhere/5.jpg", 2, "cat"),
    ("b/\udcff.jpg", 1, "bee"),  # a name that the file system has in no encoding
    ("b/1.jpg", 1, "bee"),
]


def test_packed_rows_are_the_rows():
    packed = Rows.pack(PLAIN)
    assert list(packed) == PLAIN
    assert [packed[index] for index in range(-len(PLAIN), len(PLAIN))] == PLAIN * 2
    assert packed[2:7:2] == PLAIN[2:7:2]
    assert packed[::-1] == PLAIN[::-1]
    assert Rows.pack(packed) is packed
    assert PLAIN[3] in packed
    for index in (len(PLAIN), -len(PLAIN) - 1):
        with pytest.raises(IndexError):
            packed[index]
    assert list(Rows.pack([])) == []
    assert len(pickle.loads(pickle.dumps(packed))) == len(PLAIN)


@pytest.mark.parametrize("block", [2, 100])
def test_rows_are_taken_and_written_as_from_a_list(block, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "BLOCK", block)
    monkeypatch.setattr(splits, "BLOCK", block)
    packed, positions = Rows.pack(PLAIN), np.array([6, 0, 3, 2, 4])
    taken = packed.take(positions)
    assert list(taken) == [PLAIN[position] for position in positions]
    assert taken.digest() == Rows.pack(list(taken)).digest()
    assert list(packed.take(positions[:0])) == []
    for name, rows in (("packed", taken), ("list", list(taken))):
        splits.write_json({"train": rows, "val": rows[:0], "shares": [0.5]}, str(tmp_path / name))
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "list").read_bytes()


def test_positions_by_label_and_folder_come_in_the_order_of_first_appearance():
    packed = Rows.pack(PLAIN)
    assert [(k, v.tolist()) for k, v in packed.by_label().items()] == [
        (1, [0, 3, 6, 7]),
        (0, [1, 2]),
        (2, [4, 5]),
    ]
    assert {k: v.tolist() for k, v in packed.by_folder().items()} == {
        "b/": [0, 6, 7], "a/": [1, 2], "": [3], "b/deep/": [4], "/elsewhere/": [5],
    }  # fmt: skip
    assert packed.label_names() == {1: "bee", 0: "ant", 2: "cat"}


def test_classes_are_chosen_and_relabelled():
    def plainly(new):
        return [(path, new[label], name) for path, label, name in PLAIN if label in new]

    for new in ({2: 0}, {1: 0, 2: 1}, {0: 5, 1: 6, 2: 7}, {}):
        assert list(Rows.pack(PLAIN).relabelled(new)) == plainly(new)
        lazy = Datums(Rows.pack(PLAIN), "/data").relabelled(new)
        assert [item.label for item in lazy] == [label for _, label, _ in plainly(new)]


def test_digest_tells_rows_apart_and_does_not_know_how_they_were_made():
    digest = Rows.pack(PLAIN).digest()
    assert Rows.pack(iter(PLAIN)).digest() == digest
    assert Rows.pack(PLAIN).relabelled({0: 0, 1: 1, 2: 2}).digest() == digest
    others = [PLAIN[::-1], PLAIN[1:], PLAIN[:-1], [(p, label + 1, name) for p, label, name in PLAIN]]
    others += [
        [(p, label, name.upper()) for p, label, name in PLAIN],
        [("c" + p, *rest) for p, *rest in PLAIN],
    ]
    assert len({Rows.pack(other).digest() for other in others} | {digest}) == len(others) + 1


def same(lazy, listed) -> bool:
    def facts(items):
        return [(item.impath, item.label, item.domain, item.classname) for item in items]

    return facts(lazy) == facts(listed)


@pytest.fixture
def both(monkeypatch):
    listed = splits.to_datums(PLAIN, "/data")
    monkeypatch.setattr(splits, "LAZY_FROM", 1)
    lazy = splits.to_datums(PLAIN, "/data")
    assert isinstance(listed, list)
    assert isinstance(lazy, Datums)
    return lazy, listed


def test_datums_read_as_the_list_does(both):
    lazy, listed = both
    assert same(lazy, listed)
    assert [item.impath for item in lazy[1:3]] == ["/data/a/ü 1.jpg", "/data/a/2.jpg"]
    assert lazy[5].impath == "/elsewhere/5.jpg"
    assert isinstance(lazy[:2], list)
    assert same([lazy[-1]], [listed[-1]])
    assert same(lazy + listed, listed + listed)
    assert same(listed + lazy, listed * 2)
    assert same(lazy + lazy, listed * 2)
    assert same(lazy * 3, listed * 3)
    assert same(lazy.copy(), listed)
    assert same(sorted(lazy, key=lambda item: item.impath), sorted(listed, key=lambda item: item.impath))
    assert same(reversed(lazy), reversed(listed))
    random.seed(3)
    drawn = random.sample(lazy, 4)
    random.seed(3)
    assert same(drawn, random.sample(listed, 4))


def test_datums_go_to_workers_without_being_made(both, monkeypatch):
    lazy, listed = both

    def refuse(*args, **kwargs):
        raise AssertionError("a Datum was made")

    monkeypatch.setattr(rows_module, "Datum", refuse)
    sent = pickle.dumps(lazy)
    dataset = DatasetBase(train_x=lazy)
    monkeypatch.undo()
    assert same(pickle.loads(sent), listed)
    many = Datums(Rows.pack((f"a/{number:06}.jpg", 0, "ant") for number in range(1000)), "/data")
    assert len(pickle.dumps(many)) < 20 * len(many)
    assert dataset.lab2cname == {0: "ant", 1: "bee", 2: "cat"}
    assert dataset.num_classes == 3


def test_engine_names_the_labels_of_either(both):
    lazy, listed = both
    a, b = DatasetBase(train_x=lazy, test=listed), DatasetBase(train_x=listed, test=lazy)
    assert (a.num_classes, a.lab2cname, a.classnames) == (b.num_classes, b.lab2cname, b.classnames)
    set_random_seed(1)
    drawn = a.generate_fewshot_dataset(lazy, num_shots=2)
    set_random_seed(1)
    assert same(drawn, b.generate_fewshot_dataset(listed, num_shots=2))
    assert base_dataset.DatasetBase.get_num_classes([Datum("x", 4)]) == 5


@pytest.mark.parametrize("subsample", ["all", "base", "new"])
def test_base_and_new_classes_of_either(both, subsample):
    (a, b) = (splits.subsample_classes(items, subsample=subsample)[0] for items in both)
    assert same(a, b)


def test_packed_rows_are_sampled_and_checked_as_a_list(tmp_path, monkeypatch):
    plain = [row for row in PLAIN if not row[0].startswith("/") and "\udcff" not in row[0]]
    for path, _, _ in plain:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for part in (plain, Rows.pack(plain)):
        assert splits.sample_shots(part, 2, random.Random(5)) == splits.sample_shots(
            plain, 2, random.Random(5)
        )
        splits.check_labels(Split(part, [], part), "here")
        splits.check_images(Split(part, [], part), str(tmp_path), "here")
    first, second = plain[2][0], plain[1][0]
    for path in (first, second):
        os.unlink(Path(tmp_path) / path)
    for part in (plain, Rows.pack(plain)):
        with pytest.raises(
            FileNotFoundError, match=rf"here: 4 of 12 images are missing, the first: .*{second}"
        ):
            splits.check_images(Split(part, [], part), str(tmp_path), "here")
