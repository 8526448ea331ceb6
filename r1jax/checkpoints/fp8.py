"""DeepSeek-V3's FP8 weights: e4m3 values and one float32 scale for each block of 128 x 128 (the edges may be partial).

The value is weight x scale, as in deepseek-ai/DeepSeek-V3 `inference/kernel.py` (`weight_dequant`), in float32:
rounding to bfloat16 on the way changes which experts are chosen.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

DTYPE = np.dtype(ml_dtypes.float8_e4m3fn)
BLOCK = (128, 128)
SUFFIX = "_scale_inv"  # of the tensor that holds a weight's scales
_VALUES = np.arange(256, dtype=np.uint8).view(DTYPE).astype(np.float32)  # looked up: several times as fast as astype


def scale_shape(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Blocks of a matrix, partial ones included."""
    return (-(-shape[0] // block[0]), -(-shape[1] // block[1]))


def dequantise(weight: np.ndarray, scale: np.ndarray, block: tuple[int, int], first: tuple[int, int] = (0, 0)):
    """float32 [R, C] of the e4m3 rows and columns `weight` that begin at `first` of a matrix with these scales."""
    out = _VALUES[weight.view(np.uint8)]
    row_block = (first[0] + np.arange(out.shape[0])) // block[0]
    column_block = (first[1] + np.arange(out.shape[1])) // block[1]
    for b in np.unique(row_block):  # a band at a time, so that no second matrix is held
        out[row_block == b] *= scale[b].astype(np.float32)[column_block]
    return out


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(e4m3 [R, C], float32 scales) of a matrix: each block's largest magnitude becomes e4m3's largest, 448."""
    largest = float(ml_dtypes.finfo(DTYPE).max)
    scales = np.empty(scale_shape(weight.shape, BLOCK), np.float32)
    out = np.empty(weight.shape, DTYPE)
    for i, j in np.ndindex(scales.shape):
        at = tuple(slice(k * size, (k + 1) * size) for k, size in zip((i, j), BLOCK, strict=True))
        part = weight[at].astype(np.float32)
        scales[i, j] = np.abs(part).max() / largest or 1.0  # a block of zeros
        out[at] = (part / scales[i, j]).astype(DTYPE)
    return out, scales
