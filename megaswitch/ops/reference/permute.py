"""Rows of tokens in the order of their experts, and back under their gates.

T tokens, K choices a token, A = T x K assignments, N kept ones, D width.
"""

from torch import Tensor


def permute(x_TD: Tensor, kept_N: Tensor, place_A: Tensor) -> Tensor:
    """[N, D]: row n is of assignment kept[n], which is one of token kept[n] // K. `place_A` is the other way round:
    the row of each assignment, N or more where it has none."""
    choices = place_A.shape[0] // max(1, x_TD.shape[0])
    return x_TD.index_select(0, kept_N if choices <= 1 else kept_N // choices)


def weigh(y_AD: Tensor, gate_TK: Tensor) -> Tensor:
    """[T, D]: the sum over a token's choices of gate x row, gates in the rows' type."""
    y_TKD = y_AD.view(*gate_TK.shape, y_AD.shape[1]) * gate_TK.to(y_AD.dtype).unsqueeze(-1)
    return y_TKD.squeeze(1) if gate_TK.shape[1] == 1 else y_TKD.sum(1)


def unpermute(rows_ND: Tensor, gate_TK: Tensor, kept_N: Tensor, place_A: Tensor) -> Tensor:
    """[T, D]: rows back at their tokens, times their gates, summed over a token's choices; zero where it has none."""
    y_AD = rows_ND.new_zeros((place_A.shape[0], rows_ND.shape[1])).index_copy(0, kept_N, rows_ND)
    return weigh(y_AD, gate_TK)
