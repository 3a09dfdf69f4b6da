"""The runs that a part of a protocol asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.methods import Method, method_of, read_methods
from experiments.plans import Planned
from experiments.protocols import Protocol, Step
from experiments.run_folder import ROOT
from experiments.sweeps.job import Job
from prompted_clip.errors import MissingFileError, UserError

STAGES = ("all", "train", "test")


@dataclass(frozen=True)
class Selection:
    """Which part of a protocol is wanted, as a command line says it; empty means what the protocol says."""

    methods: Sequence[str] = ()
    datasets: Sequence[str] = ()
    seeds: Sequence[int] = (1, 2, 3)
    ten_seeds: Sequence[str] = ()  # datasets with the seeds 1 to 10 instead
    shots: Sequence[int] = ()
    source: str = ""
    values: Sequence[int] = ()
    stage: str = "all"
    classes: Sequence[str] = ()  # that are tested on: others than the protocol's
    weights: str = ""  # where to take what is tested, with {dataset} and {seed}
    load_epoch: int | None = None
    root: str = "data"
    options: Sequence[str] = ()
    plugins: Sequence[str] = ()
    backbone: str = ""


def units(protocol: Protocol, selection: Selection) -> list[tuple[Job, ...]]:
    """The runs, in units of what has to come one after the other: a training, then tests of what it learned.

    A method that learns nothing has no seed that could matter, and is tested with the first one alone.

    Raises:
        ValueError: an unknown method, or one that the protocol is not for.
        FileNotFoundError: there is no configuration for a method or a dataset.
    """
    found = []
    shots_list = selection.shots or protocol.shots
    for trained_on in _trained_on(protocol, selection):
        for method, label, options in _variants(protocol, selection, trained_on):
            seeds = range(1, 11) if trained_on in selection.ten_seeds else selection.seeds
            seeds = selection.seeds[:1] if method.is_zero_shot else seeds
            for shots in shots_list[-1:] if method.is_zero_shot else shots_list:
                for seed in seeds:
                    plan = _Plan(protocol, selection, method, trained_on, shots, seed, label, options)
                    found.append(tuple(plan.jobs()))
    return [unit for unit in found if unit]


def _trained_on(protocol: Protocol, selection: Selection) -> Sequence[str]:
    if protocol.source:
        return [selection.source or protocol.source]
    return selection.datasets or protocol.datasets


def _variants(
    protocol: Protocol, selection: Selection, dataset: str
) -> Iterator[tuple[Method, tuple[str, int] | None, tuple[str, ...]]]:
    """Each method, with the point of the curve that it is for, and the options that make it so."""
    if not protocol.curves:
        for method in chosen_methods(protocol, selection.methods):
            yield method, None, ()
        return
    values = selection.values or protocol.values_of.get(dataset) or protocol.values
    wanted = {method.key for method in chosen_methods(protocol, selection.methods)}
    for label, curve in protocol.curves.items():
        if curve.method not in wanted:
            continue
        (method,) = chosen_methods(protocol, [curve.method])
        for value in values:
            options = tuple(word for key in curve.options for word in (key, str(value)))
            yield method, (label, value), options


def chosen_methods(protocol: Protocol, names: Sequence[str]) -> list[Method]:
    """The methods of these names: keys of methods.yaml, or TRAINER:CONFIG; `all`, or none, for all of them.

    All are without those that learn something for each class, where other classes are tested.

    Raises:
        ValueError: an unknown name.
    """
    known = {method.key: method for method in read_methods()}
    if not names or list(names) == ["all"]:
        others = bool(protocol.source) or any(step.classes == "new" for step in protocol.tests)
        return [
            method
            for key, method in known.items()
            if (not protocol.methods or key in protocol.methods) and not (others and method.class_specific)
        ]
    chosen = []
    for name in names:
        trainer, colon, config = name.partition(":")
        if colon and trainer and config:
            found = method_of(list(known.values()), trainer, config)
            chosen.append(replace(found, rules=({"config": config},)))
        elif name in known:
            chosen.append(known[name])
        else:
            raise UserError(
                f"--trainers {name}: allowed are all, {', '.join(known)}, or TRAINER:CONFIG with a file of "
                "configs/trainers/TRAINER."
            )
    return chosen


@dataclass(frozen=True)
class _Plan:
    """The runs of one method with one seed, trained on one dataset."""

    protocol: Protocol
    selection: Selection
    method: Method
    trained_on: str
    shots: int
    seed: int
    point: tuple[str, int] | None
    options: tuple[str, ...]

    def jobs(self) -> Iterator[Job]:
        protocol, selection = self.protocol, self.selection
        if self.method.is_zero_shot or selection.weights or selection.classes:
            weights = filled("--weights", selection.weights, dataset=self.trained_on, seed=self.seed)
            learns = not self.method.is_zero_shot
            if learns and not weights and protocol.train:
                weights = self._folder(protocol.train, self.trained_on)
            if learns and not weights:
                raise UserError(
                    f"{protocol.name} tests without training: --trainers {self.method.key} is not for it."
                )
            if selection.stage != "train" or not learns:
                steps = [
                    step
                    for step in protocol.untrained
                    if not selection.classes or step.classes in selection.classes
                ]
                yield from self._tests(steps, weights if learns else "", needs="")
            return
        if protocol.train is None:
            raise UserError(
                f"{protocol.name} tests without training: --trainers {self.method.key} is not for it."
            )
        trained = self._folder(protocol.train, self.trained_on)
        if selection.stage != "test":
            yield self._job(protocol.train, self.trained_on, trains=True)
        if selection.stage != "train":
            yield from self._tests(protocol.tests, trained, needs=trained)

    def _tests(self, steps: Sequence[Step], weights: str, needs: str) -> Iterator[Job]:
        train = self.protocol.train
        for step in steps:
            if self.method.class_specific and train and step.classes != train.classes:
                continue  # what it has learned is of the classes trained on alone
            for dataset in self._tested_on(step):
                if self.method.class_specific and dataset != self.trained_on:
                    continue
                yield self._job(step, dataset, trains=False, weights=weights, needs=needs)

    def _tested_on(self, step: Step) -> Sequence[str]:
        asked = self.selection.datasets or self.protocol.datasets
        if not self.protocol.source:
            return [self.trained_on]
        if step.role != "source":
            return [dataset for dataset in asked if dataset != self.trained_on]
        # Of --weights, what was asked for by name is tested, and no more.
        left_out = self.selection.weights and self.trained_on not in (
            self.selection.datasets or [self.trained_on]
        )
        return [] if left_out else [self.trained_on]

    def _folder(self, step: Step, dataset: str) -> str:
        curve, value = self.point or ("", None)
        return filled(
            f"{self.protocol.name}, folder",
            step.folder,
            dataset=dataset,
            source=self.trained_on,
            shots=self.shots,
            method=f"{self.method.trainer}/{self._config()}",
            seed=self.seed,
            curve=re.sub(r"\W+", "_", curve),
            value=value,
        )

    def _config(self) -> str:
        return self.method.config(self.protocol.name, self.trained_on, self.shots)

    def _job(self, step: Step, dataset: str, trains: bool, weights: str = "", needs: str = "") -> Job:
        trainer, config, selection = self.method.trainer, self._config(), self.selection
        curve, value = self.point or ("", None)
        planned = Planned(
            folder=self._folder(step, dataset),
            protocol=self.protocol.name,
            method=self.method.key,
            trainer=trainer,
            config=config,
            dataset=dataset,
            role=step.role,
            classes=step.classes,
            shots=self.shots,
            seed=self.seed,
            trains=trains,
            curve=curve,
            value=value,
            source=self.trained_on if self.protocol.source else "",
        )
        flags = ["--root", selection.root, "--seed", str(self.seed), "--trainer", trainer]
        flags += ["--dataset-config-file", config_file("datasets", f"{dataset}.yaml")]
        flags += ["--config-file", config_file("trainers", f"{trainer}/{config}.yaml")]
        flags += ["--backbone", selection.backbone] if selection.backbone else []
        flags += [word for plugin in selection.plugins for word in ("--plugin", plugin)]
        options = ["DATASET.NUM_SHOTS", str(self.shots)]
        options += ["DATASET.SUBSAMPLE_CLASSES", step.classes]
        if trains:  # a run that is stopped goes on from its last epoch
            options += ["TRAIN.CHECKPOINT_FREQ", "1", "TRAIN.CHECKPOINTS_KEPT", "1"]
        options += [*self.options, *selection.options]
        load_epoch = selection.load_epoch if weights else None
        return Job(planned, tuple(flags), tuple(options), weights, needs, load_epoch)


def filled(where: str, form: str, **values: Any) -> str:
    """A path with values in the places of their names.

    Args:
        where: what holds the form, for the error.

    Raises:
        ValueError: there is a place for something else.
    """
    try:
        return form.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        allowed = ", ".join(f"{{{name}}}" for name in values)
        raise UserError(f"{where} is {form!r}; allowed places in it are {allowed}.") from error


def config_file(kind: str, name: str) -> str:
    """The path of a configuration, as `train.py` takes it from the project's folder.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path("configs") / kind / name
    if not (ROOT / path).is_file():
        there = ", ".join(sorted(each.stem for each in (ROOT / path).parent.glob("*.yaml"))) or "none"
        raise MissingFileError(f"There is no {path}; in its folder are {there}.")
    return str(path)
