"""Three classes with colours, and pictures of them."""

from __future__ import annotations

import cv2
import numpy as np

CLASSES = ["ground", "leaf", "stone"]


PALETTE = [(0, 0, 0), (40, 160, 60), (200, 80, 30)]


SIZE = (48, 64)


def picture(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A green disc and a red box on dark ground."""
    generator = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    centre = (int(generator.integers(12, size[1] - 12)), int(generator.integers(12, size[0] - 12)))
    cv2.circle(label, centre, 10, 1, -1)
    label[: size[0] // 4, : size[1] // 3] = 2
    image = np.array([(30, 30, 40), (40, 200, 60), (220, 60, 40)], np.uint8)[label]
    return image + generator.integers(0, 20, (*size, 3), dtype=np.uint8), label
