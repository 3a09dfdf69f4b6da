"""Samplers: the order of the images of a split."""

from __future__ import annotations

import inspect
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl.data.datasets import Datum
from dassl.utils import Registry
from dassl.utils.distributed import broadcast, get_rank, get_world_size
from prompted_clip.errors import UserError

SAMPLER_REGISTRY = Registry("SAMPLER")
SAMPLER_REGISTRY.register(RandomSampler)
SAMPLER_REGISTRY.register(SequentialSampler)


@SAMPLER_REGISTRY.register()
class DistributedEvalSampler(Sampler[int]):
    """The images of this process in a test on several: every image goes to exactly one of them.

    None comes twice to make the shards equal, so that the metrics, which `Classification` gathers, are those
    of one process alone. Without torch.distributed it is the `SequentialSampler`.
    """

    def __init__(self, data_source: Sequence[Datum]) -> None:
        self.count = len(data_source)

    @property
    def shard(self) -> range:
        """Asked each time: the processes may be set up after the loaders are built."""
        rank, world_size = get_rank(), get_world_size()
        return range(rank, self.count, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.shard)

    def __len__(self) -> int:
        return len(self.shard)


class DistributedBatchSampler(Sampler[list[int]]):
    """This process's equal share of each batch, in a training on several processes.

    Rank zero draws the order of each epoch for all, from `sampler`. A batch is what it would be in one
    process alone, and its images are dealt out one by one.

    Args:
        sampler: the order of an epoch.
        batch_size: images in a batch of all processes together.
        drop_last: whether to drop the last batch of an epoch where it is not full.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    @property
    def smallest(self) -> int:
        """Images in the smallest batch of all processes together."""
        left = 0 if self.drop_last else len(self.sampler) % self.batch_size
        return left or self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = get_rank(), get_world_size()
        order = broadcast(list(self.sampler) if rank == 0 else None)
        for batch in BatchSampler(order, self.batch_size, self.drop_last):
            yield batch[rank::world_size]

    def __len__(self) -> int:
        return len(BatchSampler(self.sampler, self.batch_size, self.drop_last))


class _GroupSampler(Sampler[int]):
    """Base of the samplers that draw batches group by group, with Python's random numbers.

    Its length is that of one order drawn beforehand. Orders can differ a little in length, as they end as
    soon as the groups can no longer fill a batch.
    """

    def __init__(self) -> None:
        # Own random numbers: asking for the length must not change what is drawn later.
        self.length = len(self.draw(random.Random(0)))

    def draw(self, rng: Any) -> list[int]:
        """Indices of one epoch, drawn with `rng`: the `random` module, or a generator with its functions."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw(random))

    def __len__(self) -> int:
        return self.length


@SAMPLER_REGISTRY.register()
class RandomDomainSampler(_GroupSampler):
    """Batches of `n_domain` random domains with equally many random images of each.

    Args:
        data_source: the images.
        batch_size: images in a batch.
        n_domain: domains in a batch; 0 or less takes all of them.

    Raises:
        ValueError: too few domains, a domain with too few images, or a batch that they cannot share equally.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int = 0) -> None:
        self.indices = _group(data_source, "domain")
        self.domains = self._order(self.indices)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.domains)
        if self.n_domain > len(self.domains):
            raise UserError(
                f"DATALOADER: N_DOMAIN is {n_domain}, but the data has {len(self.domains)} domains."
            )
        if batch_size % self.n_domain:
            raise UserError(
                f"{type(self).__name__}: a batch of {batch_size} images cannot be shared out equally among "
                f"{self.n_domain} domains; choose a BATCH_SIZE that is a multiple of it."
            )
        self.per_domain = batch_size // self.n_domain
        for domain, items in self.indices.items():
            if len(items) < self.per_domain:
                raise UserError(
                    f"{type(self).__name__}: domain {domain} has {len(items)} images, but a batch of "
                    f"{batch_size} takes {self.per_domain} of each; choose a smaller BATCH_SIZE."
                )
        super().__init__()

    def _order(self, indices: dict[int, list[int]]) -> list[int]:
        return list(indices)

    def _choose(self, rng: Any) -> list[int]:
        return rng.sample(self.domains, self.n_domain)

    def draw(self, rng: Any) -> list[int]:
        chunks = {domain: _chunks(items, self.per_domain, rng) for domain, items in self.indices.items()}
        order: list[int] = []
        while True:
            domains = self._choose(rng)
            for domain in domains:
                order += chunks[domain].pop()
            if not all(chunks[domain] for domain in domains):
                return order


@SAMPLER_REGISTRY.register()
class SeqDomainSampler(RandomDomainSampler):
    """Batches with equally many random images of every domain, the domains always in ascending order."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size)

    def _order(self, indices: dict[int, list[int]]) -> list[int]:
        return sorted(indices)

    def _choose(self, rng: Any) -> list[int]:
        return self.domains


@SAMPLER_REGISTRY.register()
class RandomClassSampler(_GroupSampler):
    """Batches of random classes with `n_ins` random images of each.

    A class with fewer images than that gives some of them more than once.

    Args:
        data_source: the images.
        batch_size: images in a batch.
        n_ins: images per class in a batch.

    Raises:
        ValueError: a batch is smaller than `n_ins`, or takes more classes than there are.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        self.indices = _group(data_source, "label")
        self.n_ins = n_ins
        if not 1 <= n_ins <= batch_size:
            raise UserError(
                f"DATALOADER: N_INS is {n_ins}; it must lie between 1 and BATCH_SIZE, {batch_size}."
            )
        self.classes_per_batch = batch_size // n_ins
        if self.classes_per_batch > len(self.indices):
            raise UserError(
                f"RandomClassSampler: a batch of {batch_size} images, {n_ins} per class, takes "
                f"{self.classes_per_batch} classes, but the data has {len(self.indices)}; choose a smaller "
                "BATCH_SIZE or a larger N_INS."
            )
        super().__init__()

    def draw(self, rng: Any) -> list[int]:
        chunks = {}
        for label, items in self.indices.items():
            enough = items if len(items) >= self.n_ins else rng.choices(items, k=self.n_ins)
            chunks[label] = _chunks(enough, self.n_ins, rng)
        order: list[int] = []
        while len(chunks) >= self.classes_per_batch:
            for label in rng.sample(list(chunks), self.classes_per_batch):
                order += chunks[label].pop()
                if not chunks[label]:
                    del chunks[label]
        return order


def _group(data_source: Sequence[Datum], key: str) -> dict[int, list[int]]:
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, key)].append(index)
    return groups


def _chunks(items: list[int], size: int, rng: Any) -> list[list[int]]:
    # In random order, cut into pieces of `size`; what is left over at the end is dropped.
    shuffled = rng.sample(items, len(items))
    return [shuffled[start : start + size] for start in range(0, len(items) - size + 1, size)]


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Any:
    """Builds a sampler by name. It is called with the images and those of the other arguments that it takes.

    Raises:
        ValueError: an unknown name, or settings that do not fit the data.
    """
    sampler = SAMPLER_REGISTRY.get(sampler_type)
    settings = {"cfg": cfg, "batch_size": batch_size, "n_domain": n_domain, "n_ins": n_ins}
    takes = inspect.signature(sampler).parameters
    return sampler(data_source, **{name: value for name, value in settings.items() if name in takes})
