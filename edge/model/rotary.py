"""The order of the rows of q and k in an exported model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotary_row_order(num_heads: int, head_dim: int, rotary_dim: int) -> NDArray[np.int64]:
    """Row order that turns adjacent-pair rotary heads into half-split ones.

    Shape [num_heads * head_dim]; within the first `rotary_dim` rows of each head the even rows come
    first, then the odd ones.
    """
    head = np.arange(head_dim)
    head[:rotary_dim] = np.concatenate([np.arange(0, rotary_dim, 2), np.arange(1, rotary_dim, 2)])
    return (np.arange(num_heads)[:, None] * head_dim + head[None, :]).reshape(-1)
