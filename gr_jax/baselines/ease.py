"""EASE: the linear model of items from items that has a closed form.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from scipy import sparse
from scipy.linalg import get_lapack_funcs

from gr_jax.baselines.questions import DenseScores

MANY_ITEMS = 5000  # seconds for each penalty
MOST_ITEMS = 15_000  # two tables of 0.9 GB, and 20 seconds on two cores for each penalty


def weights(had: sparse.csr_array, penalty: float) -> Float32[np.ndarray, "X1 X1"]:
    """The weights B, 0 on the diagonal, that minimise |A - A B|^2 + penalty |B|^2.

    Args:
      had: A, [B, X + 1], 1 where a user had an item.
      penalty: lambda of the paper.

    Raises:
      MemoryError: there is no room for the tables.
    """
    gram = np.asfortranarray((had.T @ had).toarray(), np.float32)
    np.fill_diagonal(gram, gram.diagonal() + penalty)
    # Symmetric and positive definite: Cholesky, then the inverse in place, of the upper half.
    factorise, invert = get_lapack_funcs(("potrf", "potri"), (gram,))
    factor, failed = factorise(gram, overwrite_a=True)
    inverse, failed_too = invert(factor, overwrite_c=True)
    if failed or failed_too:
        raise np.linalg.LinAlgError("EASE: the matrix of the items is not positive definite")
    inverse = np.triu(inverse)
    inverse += np.triu(inverse, 1).T
    table = inverse / -inverse.diagonal()
    np.fill_diagonal(table, 0)
    return table


def scores(table: Float32[np.ndarray, "X1 X1"]) -> DenseScores:
    """Scores by the sum of the weights from the items of the history."""
    return DenseScores(lambda part: part.histories() @ table)
