"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounding that makes up for its error in the columns still to come."""

from __future__ import annotations

import torch

from lowbit.errors import SchemeError, WeightError
from lowbit.scheme import LEVELS, Scheme
from lowbit.strategies.grid import Fit, as_stored, decode, encode
from lowbit.strategies.registry import get_strategy, grid_scheme, strategy

DAMPING = 0.1  # ten times the paper's: the inputs may be generated ones, which resemble the real ones only roughly
_BLOCK = 128  # columns whose effect on all later ones is applied in one product


@strategy(*LEVELS)
def gptq(
    blocks: torch.Tensor,
    scheme: Scheme,
    keep: torch.Tensor | None,
    *,
    hessian: torch.Tensor | None,
    damping: float = DAMPING,
    act_order: bool = True,
) -> Fit:
    """Round column by column and spread each error over the later columns, so that the layer's output changes least.

    ``hessian`` float32 [in, in] is the sum of x x^T over the layer's inputs. The grid is that of ``mse`` (``kmeans``
    for codebooks), found before. Outliers are fixed first: they keep 16 bits and take up errors of earlier columns
    without causing any. ``damping`` adds that share of the mean diagonal; ``act_order`` starts with the columns of the
    largest inputs. A missing Hessian raises SchemeError, one that cannot be inverted WeightError.
    """
    if hessian is None:
        raise SchemeError("strategy 'gptq' needs the second moments of the layer's inputs; quantize a whole model")
    grid = grid_scheme(scheme)
    fit = as_stored(get_strategy(grid)(blocks, grid, keep), scheme)
    columns = hessian.shape[0]
    weight = blocks.reshape(-1, columns)
    kept = None if keep is None else keep.reshape(-1, columns)
    diagonal = hessian.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns)
    factor = _inverse_factor(hessian[order][:, order], damping)
    codes, moved = _round_columns(weight, kept, order, factor, scheme, fit)
    shift = None if kept is None else moved.masked_fill_(kept, 0).view(blocks.shape)
    return Fit(fit.scale, fit.zero_point, fit.codebook, codes.view(blocks.shape), shift)


def error_weights(hessian: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """How much an error in each column costs once the other columns have made up for it, float32 [in].

    1 / sqrt(diag(H^-1)), as SpQR (Dettmers et al. 2023, arXiv 2306.03078) ranks outliers.
    """
    return _inverse_factor(hessian, damping).square().sum(dim=0).rsqrt()


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor [in, in] of the inverse of the damped Hessian."""
    if damping <= 0:
        raise SchemeError(f"strategy 'gptq' needs a positive damping, not {damping}")
    damped = hessian.to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    diagonal.add_(damping * mean if mean > 0 else 1.0)
    lower, failed = torch.linalg.cholesky_ex(damped)
    upper, failed_again = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or failed_again:
        raise WeightError("the second moments of the layer's inputs cannot be inverted; raise gptq's option `damping`")
    return upper.float()


def _round_columns(
    weight: torch.Tensor,
    kept: torch.Tensor | None,
    order: torch.Tensor,
    factor: torch.Tensor,
    scheme: Scheme,
    fit: Fit,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [out, in], and the float weight [out, in] as it stood when each column had its turn."""
    rows, columns = weight.shape
    work = weight[:, order].t().contiguous()  # [in, out]: a column at a time is then contiguous
    free = None if kept is None else ~kept[:, order].t().contiguous()
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty(stop - start, rows, device=weight.device)
        for column in range(start, stop):
            own = _column_fit(fit, int(order[column]), rows, columns)
            value = work[column].view(rows, 1, 1)
            code = encode(value, scheme, own)
            codes[column] = code.view(rows).to(torch.uint8)
            error = (value - decode(code, scheme, own)).view(rows).div_(factor[column, column])
            if free is not None:
                error.masked_fill_(free[column], 0)
            errors[column - start] = error
            work[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
        work[stop:] -= factor[start:stop, stop:].t() @ errors
    restored_codes, restored = torch.empty_like(codes), torch.empty_like(work)
    restored_codes[order], restored[order] = codes, work
    return restored_codes.t().contiguous(), restored.t().contiguous()


def _column_fit(fit: Fit, column: int, rows: int, columns: int) -> Fit:
    """The fit of one column: a step size (and zero point, codebook) for each of its rows."""
    if fit.scale.numel() == 1:
        return Fit(
            fit.scale.expand(rows), None if fit.zero_point is None else fit.zero_point.expand(rows), fit.codebook
        )
    groups = fit.scale.numel() // rows
    group = column * groups // columns

    def pick(values: torch.Tensor) -> torch.Tensor:
        return values.view(rows, groups, -1)[:, group]

    codebook = fit.codebook
    if codebook is not None and codebook.shape[0] > 1:
        codebook = pick(codebook)
    zero_point = None if fit.zero_point is None else pick(fit.zero_point)[:, 0]
    return Fit(pick(fit.scale)[:, 0], zero_point, codebook)
