"""The order in which images are visited."""

import random
from collections import Counter

import pytest
import torch

from dassl.data.datasets import Datum
from dassl.data.samplers import SAMPLER_REGISTRY, build_sampler


def images(*counts, of="domain"):
    """`counts[k]` images of domain (or label) k."""
    return [Datum(f"{key}/{i}", **{of: key}) for key, count in enumerate(counts) for i in range(count)]


def batches(sampler, size):
    order = list(sampler)
    assert len(order) % size == 0
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_random_and_sequential():
    data = images(5, 4)
    assert list(build_sampler("SequentialSampler", data_source=data)) == list(range(9))
    order = list(build_sampler("RandomSampler", data_source=data))
    assert sorted(order) == list(range(9))


def test_random_domains_share_a_batch_equally():
    data = images(7, 9, 8)
    sampler = build_sampler("RandomDomainSampler", data_source=data, batch_size=4, n_domain=2)
    for _ in range(5):
        order = list(sampler)
        assert len(order) == len(set(order))
        for batch in batches(order, 4):
            counts = Counter(data[index].domain for index in batch)
            assert sorted(counts.values()) == [2, 2]


def test_all_domains_are_taken_by_default_and_the_length_is_exact():
    sampler = build_sampler("RandomDomainSampler", data_source=images(7, 9, 8), batch_size=6)
    assert len(sampler) == len(list(sampler)) == 18  # three batches; domain 0 then has one image left


def test_sequential_domains_come_in_ascending_order():
    data = [*images(0, 4), *images(4)]  # domain 1 first
    sampler = build_sampler("SeqDomainSampler", data_source=data, batch_size=4)
    for batch in batches(sampler, 4):
        assert [data[index].domain for index in batch] == [0, 0, 1, 1]


def test_random_classes_repeat_images_of_small_classes():
    data = images(5, 1, 4, of="label")
    sampler = build_sampler("RandomClassSampler", data_source=data, batch_size=4, n_ins=2)
    small = 0
    for _ in range(5):
        for batch in batches(sampler, 4):
            labels = [data[index].label for index in batch]
            assert labels[0] == labels[1] != labels[2] == labels[3]
            small += labels.count(1)
    assert small > 0


@pytest.mark.parametrize("name", ["RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"])
def test_draws_come_from_pythons_generator_and_the_length_takes_none(name):
    data = [*images(4, 5), *images(4, 5, of="label")]
    random.seed(5)
    before = random.getstate()
    sampler = build_sampler(name, data_source=data, batch_size=4, n_ins=2)
    assert len(sampler) > 0
    assert random.getstate() == before
    first, second = list(sampler), list(sampler)
    random.seed(5)
    assert list(sampler) == first
    assert first != second


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "RandomDomainSampler",
            {"batch_size": 4, "n_domain": 3},
            "N_DOMAIN is 3, but the data has 2 domains",
        ),
        ("RandomDomainSampler", {"batch_size": 5}, "batch of 5 images cannot be shared out equally among 2"),
        ("SeqDomainSampler", {"batch_size": 8}, "domain 0 has 3 images, but a batch of 8 takes 4 of each"),
        ("RandomClassSampler", {"batch_size": 4, "n_ins": 2}, "takes 2 classes, but the data has 1"),
        ("RandomSampeler", {}, "'RandomSampeler'; did you mean 'RandomSampler'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build_sampler(name, data_source=images(3, 9), **settings)


def test_samplers_from_outside_are_called_with_what_they_take():
    @SAMPLER_REGISTRY.register()
    class EveryOther(torch.utils.data.Sampler):
        def __init__(self, data_source, batch_size):
            self.order = range(0, len(data_source), batch_size)

        def __iter__(self):
            return iter(self.order)

    assert list(build_sampler("EveryOther", data_source=images(6), batch_size=2)) == [0, 2, 4]
