"""Definition of routed attention, one region at a time."""

from __future__ import annotations

import torch


def routed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], *, scale: float
) -> torch.Tensor:
    """Queries of region r attend to the keys of the regions `routes[:, r]` (arXiv 2303.08810, eq. 5 and 6)."""
    (rh, rw), cols = region, q.shape[2] // region[1]

    def place(number: int) -> tuple[slice, slice]:
        row, col = number // cols, number % cols
        return slice(row * rh, (row + 1) * rh), slice(col * rw, (col + 1) * rw)

    out = torch.empty_like(q)
    for image, of_image in enumerate(routes.tolist()):
        for number, seen in enumerate(of_image):
            query = q[image][place(number)]  # rh rw heads d
            keys, values = (torch.cat([x[image][place(other)].flatten(0, 1) for other in seen]) for x in (k, v))
            scores = torch.einsum("ijhd,nhd->ijhn", query * scale, keys)
            out[image][place(number)] = torch.einsum("ijhn,nhd->ijhd", scores.softmax(-1), values)
    return out
