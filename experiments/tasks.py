"""The version of a task: a protocol on a dataset, whose tested images are of one published split.

Two results are of one task if they have the same id, such as `base2new/dtd@1`. A split or a protocol that
changes is another version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.sources import find
from experiments.methods import method_of, read_methods
from experiments.results.result_file import result_of
from experiments.results.runs import place_of

VERSIONS: dict[tuple[str, str], int] = {}  # by protocol and dataset; all others are in their first
SHAPES = {"base": 1200, "new": 1200, "all": 2400}  # drawn, so in no list of sources
# Of the CLIP paper (arXiv 2103.00020), section 5, on 35 datasets that its authors looked at as a whole.
OVERLAP = (
    "How many of a dataset's test images CLIP saw in its pre-training is not known to us by dataset. CLIP's "
    "authors found, over 35 datasets, a median overlap of 2.2 % and an average of 3.2 %, and that it rarely "
    "moved an accuracy by more than 0.1 % (arXiv 2103.00020, section 5). Shapes was drawn by this project: "
    "no image of it was in any pre-training (docs/embedded_default.md)."
)


def task_of(content: Mapping[str, Any]) -> str:
    """The id of the task that a result.json is of; "" for one that is of none, such as a test on own data.

    A run without a test is of none.

    Raises:
        ValueError: the content is not that of a result.json.
    """
    if not content.get("results"):
        return ""
    result = result_of(Path(), content)
    images = {"base": "test_base", "new": "test_new", "all": "test"}.get(result.classes, "")
    try:
        protocol, _ = place_of(result, method_of(read_methods(), result.trainer, result.config))
        size = SHAPES[result.classes] if result.dataset == "shapes" else find(result.dataset).counts[images]
    except (ValueError, KeyError):
        return ""
    if result.total != size:
        return ""
    return f"{protocol}/{result.dataset}@{VERSIONS.get((protocol, result.dataset), 1)}"
