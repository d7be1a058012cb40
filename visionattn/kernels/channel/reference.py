"""Definition of channel attention, one image and head at a time."""

from __future__ import annotations

import torch


def channel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Channel c of the output is the average of the channels e of q, weighted by `softmax_e(scale * sum_n k[n, c] v[n, e])`."""
    batch, height, width, heads, dim = q.shape
    images = []
    for image in range(batch):
        outputs = []
        for head in range(heads):
            query, key, value = (tensor[image, :, :, head].reshape(height * width, dim) for tensor in (q, k, v))  # N d
            weights = (scale * key.T @ value).softmax(-1)  # d d
            outputs.append((query @ weights.T).view(height, width, dim))
        images.append(torch.stack(outputs, dim=2))
    return torch.stack(images)
