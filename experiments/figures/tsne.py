"""t-SNE of the image embeddings of trained methods, side by side (MaPLe, figure 3, arXiv 2210.03117).

All panels show the same images. Distances between groups in such a picture mean little; beside it stands how
many images their neighbours in the embedding itself put into the right class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.manifold import TSNE

from dassl.data.data_manager import build_data_loader
from experiments.load_run import eval_transform, labels_of, load_trainer
from prompted_clip.errors import UserError
from prompted_clip.escaping import printable

from .style import COLOURS, MARKERS, ROW_WIDTH, NamedFigure, finish, panels, styled, wrapped

MOST_IN_LEGEND = 30
MOST_COLUMNS = 3
PERPLEXITY = 30.0
NEIGHBOURS = 5


@dataclass
class Embedded:
    """What a panel shows.

    Attributes:
        features: of length 1, `(image feature)`.
        paths: of the images.
        neighbours: percent of the images whose `NEIGHBOURS` nearest others are mostly of their class.
    """

    label: str
    features: np.ndarray
    paths: list[str]
    neighbours: float


def choose_images(test: Sequence[Any], images: int, classes: int | Sequence[str], seed: int) -> list[Any]:
    """A sample of test images, as many of each class as can be.

    Args:
        test: Dassl's `Datum`s.
        images: at most so many.
        classes: how many, drawn with the seed; or their names.

    Raises:
        ValueError: a class of this name is not there, or there are fewer than 2 images of 1 class.
    """
    by_class: defaultdict[str, list[Any]] = defaultdict(list)
    for item in test:
        by_class[item.classname].append(item)
    random = np.random.default_rng(seed)
    if isinstance(classes, int):
        count = min(classes, len(by_class))
        names = [list(by_class)[k] for k in sorted(random.permutation(len(by_class))[:count])]
    else:
        names = list(classes)
        if unknown := [name for name in names if name not in by_class]:
            known = ", ".join(list(by_class)[:8]) + (", ..." if len(by_class) > 8 else "")
            raise UserError(f"--classes {unknown[0]!r}: there is no test image of it; there are {known}.")
    each = max(1, images // max(1, len(names)))
    chosen = []
    for name in names:
        items = by_class[name]
        chosen += [items[k] for k in sorted(random.permutation(len(items))[:each])]
    if len(chosen[:images]) < 5:
        raise UserError(f"t-SNE needs 5 images or more; --images and --classes leave {len(chosen[:images])}.")
    return chosen[:images]


@torch.no_grad()
def embed(trainer: Any, items: Sequence[Any]) -> np.ndarray:
    """Image features of length 1 as the run's model gives them, `(image feature)`."""
    cfg = trainer.cfg
    loader = build_data_loader(
        cfg,
        data_source=items,
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=eval_transform(trainer),
    )
    with trainer.precision.autocast():
        parts = [trainer.model.encode_image(batch["img"].to(trainer.device)) for batch in loader]
    return torch.cat(parts).float().cpu().numpy()


def neighbour_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Percent of the images that the majority of their 5 nearest others, by cosine, put into the right class.

    Args:
        features: of length 1, `(image feature)`.
        labels: `(image)`.
    """
    cosines = features @ features.T
    np.fill_diagonal(cosines, -np.inf)
    count = min(NEIGHBOURS, len(labels) - 1)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    votes = np.zeros((len(labels), labels.max() + 1))
    for neighbour in nearest.T:
        votes[np.arange(len(labels)), labels[neighbour]] += 1
    votes += np.eye(len(votes[0]))[labels[nearest[:, 0]]] * 0.5  # the nearest decides a tie
    return float(100 * (votes.argmax(axis=1) == labels).mean())


def embed_runs(
    folders: Sequence[Path],
    images: int = 1000,
    classes: int | Sequence[str] = 12,
    seed: int = 1,
    root: str = "",
) -> tuple[list[Embedded], list[str]]:
    """Embeds the same test images, those of the first run, with each run; also gives each image's class.

    Raises:
        FileNotFoundError, ValueError: as `load_trainer` and `choose_images`; or a run's method has no
            embedding of an image.
    """
    found: list[Embedded] = []
    items: list[Any] = []
    for folder, label in zip(folders, labels_of(folders), strict=True):
        trainer = load_trainer(folder, root)
        if not hasattr(getattr(trainer, "model", None), "encode_image"):
            raise UserError(
                f"{folder}: {type(trainer).__name__} has no encode_image to take embeddings from."
            )
        if not items:
            items = choose_images(trainer.dm.dataset.test, images, classes, seed)
            names = list(dict.fromkeys(item.classname for item in items))
            labels = np.array([names.index(item.classname) for item in items])
        features = embed(trainer, items)
        found.append(
            Embedded(
                label,
                features,
                [item.impath for item in items],
                neighbour_accuracy(features, labels),
            )
        )
    return found, [item.classname for item in items]


@styled
def draw_tsne(embedded: Sequence[Embedded], classnames: Sequence[str], seed: int = 1) -> NamedFigure:
    """A panel a run; colour and marker tell the class.

    Args:
        classnames: of each image.
    """
    names = list(dict.fromkeys(classnames))
    perplexity = min(PERPLEXITY, (len(classnames) - 1) / 3)
    columns = 2 if len(embedded) == 4 else min(len(embedded), MOST_COLUMNS)
    rows = -(-len(embedded) // columns)
    figure, axes = panels(columns, rows, ROW_WIDTH if columns > 1 else 4.6, 2.6 if columns == 3 else 3.2)
    places = np.array([names.index(name) for name in classnames])
    handles: dict[str, Any] = {}
    for axis, each in zip(axes.flat, embedded, strict=False):
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(each.features)
        for number, name in enumerate(names):
            chosen = plane[places == number]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
            points = axis.scatter(*chosen.T, s=12, color=colour, marker=marker, linewidths=0, alpha=0.8)
            handles[name] = points
        axis.set_title(f"{wrapped(each.label, 2.3)}\n{NEIGHBOURS}-NN accuracy {each.neighbours:.1f} %")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel("t-SNE 1")
        axis.set_ylabel("t-SNE 2")
        axis.grid(visible=False)
    for axis in axes.flat[len(embedded) :]:
        axis.set_visible(False)
    caption = (
        f"{len(classnames)} test images of {len(names)} classes, the same in all panels; perplexity "
        f"{perplexity:.3g}, started from PCA, seed {seed}. {NEIGHBOURS}-NN accuracy: images whose "
        f"{NEIGHBOURS} nearest others by cosine, in the embedding and not in the picture, vote for "
        "their class."
    )
    shown = (
        (list(handles.values()), [printable(name) for name in handles])
        if len(names) <= MOST_IN_LEGEND
        else ()
    )
    finish(figure, [caption], *shown)
    return NamedFigure("tsne", "Image embeddings by t-SNE", caption, figure)
