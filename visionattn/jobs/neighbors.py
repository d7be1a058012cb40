"""The nearest training images of others, by the angle between their features, and how often their labels agree."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from visionattn.console import Console
from visionattn.errors import UserError
from visionattn.figures import picture_grid
from visionattn.files import atomic_write, csv_lines
from visionattn.jobs.features import Features, features_of_files, features_of_split, load_features, open_model
from visionattn.jobs.predict import require_new
from visionattn.names import shown
from visionattn.spill import BLOCK, blocks
from visionattn.tasks.images import readable_picture

_DRAWN = 12  # images in a sheet, one below the other
_BESIDE = 9  # neighbours of each


@dataclass(frozen=True)
class Neighbors:
    """The nearest images of each image that was asked for.

    Attributes:
        queries: what was asked for.
        references: among what was searched.
        rows: positions of the neighbours in `references`, `[N, k]`, nearest first.
        similarity: cosine of the angle between the features, `[N, k]`.
        metrics: with labels on both sides: `nearest_top1`, `knn_top1`.
    """

    queries: Features
    references: Features
    rows: np.ndarray
    similarity: np.ndarray
    metrics: dict[str, float]

    def table(self) -> Iterator[list[Any]]:
        """A row per neighbour: query and its label, rank, neighbour and its label, similarity."""
        for query in range(len(self.rows)):
            for rank, (row, similarity) in enumerate(zip(self.rows[query].tolist(), self.similarity[query].tolist(), strict=True), 1):
                yield [*_named(self.queries, query), rank, *_named(self.references, row), f"{similarity:.4f}"]


COLUMNS = ["query", "query_label", "rank", "neighbor", "label", "similarity"]


def find_neighbors(
    source: str | Path | Sequence[str | Path],
    query: str | Path | Sequence[str | Path] | None = None,
    *,
    data: str | Path | None = None,
    features: str | Path | None = None,
    split: str | None = None,
    k: int = 5,
    out: str | Path | None = None,
    batch_size: int = 32,
    settings: Sequence[str] = (),
    console: Console | None = None,
) -> Neighbors:
    """Find the nearest training images of files, or of the images of a split.

    Args:
        source: see `load_model`.
        query: files, folders or globs; None with `split`.
        data: data set whose training split is searched; None for that of the run.
        features: saved features of `extract_features` to search instead.
        split: search for the images of this split of the data set, and measure how many get the right label; in the training split no
            image is its own neighbour.
        k: neighbours per image.
        out: folder for `neighbors.csv` and `neighbors.png`; None saves nothing.
        batch_size: images per step, of classification.
        settings: as in `evaluate`.
        console: where progress is printed.

    Raises:
        UserError: VA-C005, neither files nor a split, or nothing to search; VA-C002, both, or a split without labels; as in
            `extract_features`.
    """
    console = console or Console(quiet=True)
    if (query is None) == (split is None):
        what = (
            "nothing to find neighbours of: give files, or --split" if query is None else "--split: there are files to find neighbours of"
        )
        raise UserError("VA-C005" if query is None else "VA-C002", what)
    model = open_model(source, settings, console)
    if data is None and features is None and not model.config.data.has_source:
        raise UserError("VA-C005", "nothing to search: the model has no data of its own", fix="--data FOLDER")
    files = [] if out is None else [Path(out).expanduser() / name for name in ("neighbors.csv", "neighbors.png")]
    require_new(files)
    references = load_features(Path(features), model) if features else features_of_split(model, data, "train", batch_size, console)
    if split is None:
        queries = features_of_files(model, query, batch_size, console)
    else:
        queries = features_of_split(model, data, split, batch_size, console)
        if queries.labels is None or references.labels is None:
            raise UserError("VA-C002", "--split: the images have no labels to compare")
    itself = None
    if split == "train":
        place = {name: row for row, name in enumerate(references.ids)}
        itself = np.array([place.get(name, -1) for name in queries.ids])
    similarity, rows = nearest(queries.values, references.values, k, itself=itself)
    found = Neighbors(queries, references, rows, similarity, _agreement(queries, references, rows))
    if files:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        atomic_write(files[0], csv_lines(COLUMNS, found.table()))
        _draw(found, files[1])
        console.field("written", "\n".join(map(str, files)))
    return found


def nearest(
    queries: np.ndarray, references: np.ndarray, k: int, *, itself: np.ndarray | None = None, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The k references of each query with the largest cosine, by comparing all of them, in blocks of bounded memory.

    Args:
        queries: `[N, channels]`.
        references: `[M, channels]`.
        itself: a reference that each query leaves out; -1 for none.
        block: numbers computed with at a time.

    Returns:
        Cosines and positions, `[N, min(k, M)]` each, largest first; fewer where one is left out of all.
    """
    k = min(k, len(references) - (itself is not None and bool((itself >= 0).any())))
    side = max(1, min(int(block**0.5), block // max(1, queries.shape[1])))
    cosines, places = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for first in range(0, len(queries), side):
        rows = slice(first, min(first + side, len(queries)))
        wanted = _directions(queries[rows])
        best = wanted.new_full((len(wanted), 0), 0.0)
        place = torch.empty(len(wanted), 0, dtype=torch.int64)
        for start in range(0, len(references), side):
            cosine = wanted @ _directions(references[start : start + side]).T
            if itself is not None:
                inside = np.flatnonzero((itself[rows] >= start) & (itself[rows] < start + side))
                cosine[inside, itself[rows][inside] - start] = -2.0
            best = torch.cat([best, cosine], 1)
            place = torch.cat([place, torch.arange(start, start + cosine.shape[1]).expand(len(wanted), -1)], 1)
            best, kept = best.topk(min(k, best.shape[1]))
            place = place.gather(1, kept)
        cosines[rows], places[rows] = best.numpy(), place.numpy()
    return cosines, places


def vote(labels: np.ndarray) -> np.ndarray:
    """The label that most neighbours have, `[N]`; of equally many that of the nearest.

    Args:
        labels: of the neighbours, `[N, k]`, nearest first.
    """
    winners = np.empty(len(labels), labels.dtype)
    for part in blocks(len(labels), labels.shape[1] ** 2):
        votes = (labels[part, :, None] == labels[part, None, :]).sum(2)
        winners[part] = labels[part][np.arange(len(votes)), votes.argmax(1)]
    return winners


def _directions(values: np.ndarray) -> torch.Tensor:
    return F.normalize(torch.tensor(np.asarray(values)), dim=1)


def _agreement(queries: Features, references: Features, rows: np.ndarray) -> dict[str, float]:
    """Share of queries with the label of their nearest neighbour, and with that of most neighbours."""
    if queries.labels is None or references.labels is None or not rows.shape[1]:
        return {}
    numbers: dict[str, int] = {}
    both = (queries.labels, references.labels)
    truth, known = (np.array([numbers.setdefault(shown(name), len(numbers)) for name in names]) for names in both)
    labels = known[rows]
    return {"nearest_top1": float((labels[:, 0] == truth).mean()), "knn_top1": float((vote(labels) == truth).mean())}


def _named(features: Features, row: int) -> list[str]:
    return [features.ids[row], "" if features.labels is None else features.labels[row]]


def _draw(found: Neighbors, path: Path) -> None:
    """Draw the first queries, each with its neighbours in a row."""
    pictures, titles = [], []
    for query in range(min(_DRAWN, len(found.rows))):
        cells = [(found.queries, query, "")]
        for row, cosine in zip(found.rows[query, :_BESIDE].tolist(), found.similarity[query, :_BESIDE].tolist(), strict=True):
            cells.append((found.references, row, f"\n{cosine:.3f}"))
        for features, row, text in cells:
            picture = readable_picture(features.images, features.positions[row])
            pictures.append(np.full((32, 32, 3), 230, np.uint8) if picture is None else picture)
            name = Path(features.ids[row]).name if features.labels is None else features.labels[row]
            titles.append(f"{name}{text}")
    buffer = io.BytesIO()
    picture_grid(pictures, titles, columns=1 + min(_BESIDE, found.rows.shape[1])).savefig(buffer, format="png", dpi=100)
    atomic_write(path, buffer.getvalue())
