"""Areas drawn and written: against their definition, and against COCO's own code."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from pycocotools import mask as library

from tests.data.masks.annotated import brush, run_lengths
from visionattn.data.masks import areas
from visionattn.data.masks.areas import (
    BadArea,
    brush_area,
    ellipse,
    polygon_area,
    rectangle,
    regions,
    run_area,
    turned,
    union,
    unpacked_runs,
)


def drawn(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    patch = polygon_area(rings, size)
    patch.within(mask)[:] = patch.pixels
    return mask


def by_definition(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Whether the ray to the right of each pixel's centre crosses the outline an odd number of times."""
    inside = np.zeros(size, bool)
    for row, column in np.ndindex(size):
        x, y, odd = column + 0.5, row + 0.5, False
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) > x:
                odd = not odd
        inside[row, column] = odd
    return inside


def blobs(seed: int, size: tuple[int, int] = (40, 57)) -> np.ndarray:
    """Regions of all kinds: with holes, with islands in them, touching at corners, cut at the border."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((size[0] // 4 + 1, size[1] // 4 + 1)).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    return coarse + 0.4 * generator.random(size) > 0.75


def test_polygons_by_definition() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        ring = generator.uniform(-5, 25, (int(generator.integers(3, 9)), 2))  # also crossing itself, and outside
        assert (drawn([ring], (18, 21)) == by_definition(ring, (18, 21))).all()
    assert drawn([rectangle(2, 3, 12, 13)], (20, 20)).sum() == 100
    assert drawn([rectangle(0, 0, 10, 10), rectangle(2, 2, 4, 4)], (20, 20)).sum() == 96
    assert drawn([rectangle(-1e7, -1e7, 1e7, 1e7)], (20, 20)).sum() == 400
    for nothing in (rectangle(30, 30, 40, 40), rectangle(2.1, 2.1, 2.4, 9), rectangle(5, -9, 9, -1)):
        assert polygon_area([nothing], (20, 20)).pixels.size == 0
    assert union([polygon_area([rectangle(0, 0, 4, 4)], (9, 9)), polygon_area([rectangle(2, 2, 6, 6)], (9, 9))]).pixels.sum() == 28


def test_polygons_as_in_coco() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 12))
        ring = np.stack([30 + 25 * np.cos(angles), 25 + 20 * np.sin(angles)], 1)
        theirs = library.decode(library.frPyObjects([ring.ravel().tolist()], 50, 60))[..., 0]
        assert abs(int(drawn([ring], (50, 60)).sum()) - int(theirs.sum())) <= 0.01 * theirs.sum()


def test_outlines() -> None:
    rows, columns = np.mgrid[:30, :40] + 0.5
    assert (drawn([ellipse(20.3, 15.2, 10, 8)], (30, 40)) == (((columns - 20.3) / 10) ** 2 + ((rows - 15.2) / 8) ** 2 <= 1)).all()
    upright = turned(rectangle(10, 10, 20, 14), (15, 12), 90)
    assert np.allclose(sorted(upright.tolist()), [[13, 7], [13, 17], [17, 7], [17, 17]])
    assert np.allclose(turned(np.array([[1.0, 0.0]]), (0, 0), 90), [[0, 1]])  # clockwise, with y downwards


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths(seed: int) -> None:
    mask = blobs(seed)
    packed = library.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    counts = unpacked_runs(packed)
    assert counts == run_lengths(mask.T.ravel())
    assert (run_area(counts, (40, 57), by_column=True) == mask).all()
    assert (run_area(run_lengths(mask.ravel()), (40, 57), by_column=False) == mask).all()
    assert (brush_area(brush(mask), (40, 57)) == mask).all()


def test_brush_strokes_that_are_damaged() -> None:
    packed = brush(blobs(0))
    for damaged in (packed[:40], packed[:3], [], [256, *packed[1:]], "rle", [*packed[:4], 0, *packed[5:]]):
        with pytest.raises(BadArea):
            brush_area(damaged, (40, 57))
    with pytest.raises(BadArea, match="for 41 x 57"):
        brush_area(packed, (57, 41))
    generator = np.random.default_rng(0)
    for _ in range(200):  # any bytes end in a mask or in an error
        changed = list(packed)
        changed[int(generator.integers(5, len(packed)))] = int(generator.integers(256))
        with suppress(BadArea):
            assert brush_area(changed, (40, 57)).shape == (40, 57)


@pytest.mark.parametrize("seed", range(6))
def test_regions(seed: int) -> None:
    mask = blobs(seed)
    found = list(regions(mask))
    assert sum(region.area for region in found) == mask.sum()
    kinds, back = set(), np.zeros_like(mask)
    for region in found:
        area = region.segmentation
        kinds.add(type(area))
        theirs = library.frPyObjects(area, *mask.shape)
        theirs = library.merge(theirs) if isinstance(theirs, list) else theirs
        assert int(library.area(theirs)) == region.area and library.toBbox(theirs).tolist() == region.bbox
        if isinstance(area, dict):
            own = run_area(area["counts"], (40, 57), by_column=True)
        else:
            own = drawn([np.reshape(area[0], (-1, 2))], (40, 57))
        assert own.sum() == region.area and not (back & own).any()
        back |= own
    assert (back == mask).all() and kinds == {list, dict}


def test_regions_of_size_have_few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    disc = drawn([ellipse(100, 90, 80, 70)], (200, 210))
    (region,) = regions(disc)
    assert region.area == disc.sum()
    assert isinstance(region.segmentation, list)
    ring = np.reshape(region.segmentation[0], (-1, 2))
    assert len(ring) < 60 and abs(int(drawn([ring], disc.shape).sum()) - region.area) < 0.01 * region.area
    monkeypatch.setattr(areas, "_LARGE", 10**9)
    (exact,) = regions(disc)
    assert isinstance(exact.segmentation, list) and (drawn([np.reshape(exact.segmentation[0], (-1, 2))], disc.shape) == disc).all()


def test_an_empty_mask_has_no_regions() -> None:
    assert list(regions(np.zeros((5, 7), bool))) == []
    (whole,) = regions(np.ones((5, 7), bool))
    assert whole == (35, [0, 0, 7, 5], [[0, 5, 7, 5, 7, 0, 0, 0]])
