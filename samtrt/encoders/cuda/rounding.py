"""Rounding a weight to e4m3 so that its product changes least (GPTQ, arXiv:2210.17323).

Column by column, the error of each is made up for in those that follow, as far as their inputs are
correlated. On the demo model that leaves of the weights' rounding next to nothing, and that of the
activations (docs/performance.md).
"""

import torch
from torch import Tensor

from samtrt.encoders.cuda.quantisation import E4M3, LARGEST, row_scale

DAMPING = 0.01  # of the mean of the Hessian's diagonal: inputs that were never seen
_COLUMNS = 128  # whose errors are gathered before the columns behind them are corrected


def round_weight(weight: Tensor, column_scale: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in e4m3 by output channel, as ``quantise_weight``, but for the inputs that it meets.

    Args:
        weight: [N, K] fp32.
        column_scale: [K] fp32, the scale of the K channels that it will be multiplied with.
        products: [K, K] fp32, Σ a aᵀ of rows a of the input, not scaled: the Hessian of the squared
            error, but for a factor.

    Returns:
        q [N, K] e4m3 and scale [N] fp32 with W ≈ q · scale[:, None] · column_scale.
    """
    weight = weight / column_scale
    scale = row_scale(weight)
    hessian = products.double() * column_scale.double()[:, None] * column_scale.double()
    # The inputs that matter most come first, while all others can still make up for them.
    order = hessian.diagonal().argsort(descending=True, stable=True)
    rest = (weight / scale[:, None])[:, order].double()
    factor = _inverse_factor(hessian[order][:, order])
    codes = torch.empty_like(rest, dtype=torch.uint8)  # (not every device indexes e4m3)
    columns = rest.shape[1]
    for first in range(0, columns, _COLUMNS):
        last = min(first + _COLUMNS, columns)
        errors = torch.empty_like(rest[:, first:last])
        for column in range(first, last):
            value = rest[:, column]
            rounded = value.float().clamp(-LARGEST, LARGEST).to(E4M3)
            codes[:, column] = rounded.view(torch.uint8)
            error = (value - rounded.double()) / factor[column, column]
            errors[:, column - first] = error
            rest[:, column + 1 : last] -= error[:, None] * factor[column, column + 1 : last]
        rest[:, last:] -= errors @ factor[first:last, last:]
    return codes[:, order.argsort()].view(E4M3), scale


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with Uᵀ U = H⁻¹, of a damped H."""
    mean = hessian.diagonal().mean()
    damped = hessian + torch.diag_embed(
        torch.full_like(hessian.diagonal(), DAMPING) * torch.where(mean > 0, mean, 1.0)
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
