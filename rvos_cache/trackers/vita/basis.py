"""A low-rank basis of the mask features, one for a whole dataset, that preserves the mask logits as well as possible.

A mask logit is the bilinear form eᵀF of a mask embedding e and a cell's mask features F, both of Cm numbers. W and V (Cm, r)
minimise the mean squared error of eᵀ V Wᵀ F over the embeddings and features of a dataset. With Σ_F = E[FFᵀ], Σ_e = E[eeᵀ] and
the truncated singular value decomposition Σ_e^½ Σ_F^½ ≈ U_r S_r R_rᵀ (optimal by the Eckart-Young theorem), W = Σ_F^-½ R_r and
V = Σ_e^-½ U_r S_r.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.system.files import write_bytes
from rvos_cache.tensors import read_tensors


@dataclass(frozen=True, eq=False)
class Basis:
    """w, v: float32 (Cm, r). A cell stores F W instead of F, and its logit for the embedding e is (F W) · (Vᵀ e)."""

    w: NDArray[np.float32]
    v: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.w.ndim != 2 or self.w.shape != self.v.shape or self.w.dtype != np.float32 or self.v.dtype != np.float32:
            raise ValueError(
                f"Basis: expected w and v float32 (Cm, r), got {self.w.dtype} {self.w.shape} and {self.v.dtype} {self.v.shape}"
            )

    @property
    def rank(self) -> int:
        """r, the number of columns."""
        return int(self.w.shape[1])

    def coordinates(self, f_mask: NDArray[np.float16]) -> NDArray[np.float16]:
        """Coordinates float16 (..., r) of mask features (..., Cm)."""
        return (f_mask.astype(np.float32) @ self.w).astype(np.float16)

    def weight_hash(self) -> dict[str, str]:
        """ "basis" -> digest of w and v."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.w, self.v):
            digest.update(np.ascontiguousarray(part).tobytes())
        return {"basis": digest.hexdigest()}

    def save(self, path: Path) -> None:
        """Write the basis to a safetensors file. Raises OSError if the file cannot be written."""
        from safetensors.numpy import save

        write_bytes(path, save({"w": self.w, "v": self.v}))

    @classmethod
    def load(cls, path: Path) -> Basis:
        """Read a basis that `save` wrote. Raises InputError if the file is not one."""
        how_to_fix = "make it with rvos-cache fit-vita-basis"
        tensors = read_tensors(path, how_to_fix)
        try:
            return cls(tensors["w"].numpy(), tensors["v"].numpy())
        except (KeyError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: not a basis of mask features ({reason}); {how_to_fix}") from error


class Moments:
    """Mean outer product of vectors of `channels` numbers, accumulated batch by batch."""

    def __init__(self, channels: int) -> None:
        self.total = np.zeros((channels, channels))
        self.count = 0

    def add(self, vectors: NDArray[Any]) -> None:
        """Add vectors (M, channels)."""
        rows = vectors.astype(np.float32)
        self.total += (rows.T @ rows).astype(np.float64)
        self.count += len(rows)

    def mean(self) -> NDArray[np.float64]:
        """E[x xᵀ] (channels, channels). Raises ValueError if no vectors were added."""
        if not self.count:
            raise ValueError("no vectors were added")
        return self.total / self.count


def fit_basis(features: NDArray[np.float64], embeddings: NDArray[np.float64], rank: int, ridge: float = 1e-4) -> Basis:
    """The optimal basis of `rank` for second moments of mask features and mask embeddings, both (Cm, Cm).

    ridge: added to both diagonals, as a share of their mean, so that directions without variance stay bounded. Raises
    ValueError if the rank is not between 1 and Cm.
    """
    channels = len(features)
    if not 1 <= rank <= channels:
        raise ValueError(f"expected a rank from 1 to {channels}, got {rank}")
    f_root, f_inverse = _roots(features, ridge)
    e_root, e_inverse = _roots(embeddings, ridge)
    u, s, rt = np.linalg.svd(e_root @ f_root)
    # The coordinates F W have unit second moments, whatever the scale of F, so they fit in float16.
    w, v = f_inverse @ rt[:rank].T, e_inverse @ (u[:, :rank] * s[:rank])
    return Basis(w.astype(np.float32), v.astype(np.float32))


def _roots(moments: NDArray[np.float64], ridge: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The symmetric square root of a regularised second moment (Cm, Cm), and its inverse."""
    values, vectors = np.linalg.eigh((moments + moments.T) / 2)
    values = np.sqrt(np.maximum(values, 0) + ridge * np.trace(moments) / len(moments))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
