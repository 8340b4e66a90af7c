"""QuantizedTensor: packed codes, their parameters and the outliers of one weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lowbit.errors import CheckpointError, SchemeError, WeightError
from lowbit.outliers import count_outliers, select
from lowbit.packing import pack, packed_size, unpack
from lowbit.scheme import Scheme
from lowbit.strategies import Fit, get_strategy, grid_scheme, needs_hessian
from lowbit.strategies.gptq import DAMPING, error_weights
from lowbit.strategies.grid import as_stored, decode, encode, group_sum, round_trip, to_blocks

_HALF_MAX = 65504.0
_SHORT_COLUMNS = 65535
_NAMES = ("weight", "scale", "zero_point", "codebook", "outlier_ptr", "outlier_col", "outlier_value", "input_scale")


@dataclass(frozen=True)
class QuantizedTensor:
    """One weight [out, in] in few bits.

    ``weight`` uint8, flat: the densely packed codes in row-major order. ``scale`` [1, 1], [out, 1] or
    [out, groups]: float32, or float16 for groups. ``zero_point`` uint8 of the same shape for asymmetric
    schemes. ``codebook`` float16 [groups, 2^bits] or, where it is shared, [1, 2^bits], in units of the scale, for the
    levels of that name. ``outlier_ptr`` int32 [out + 1], ``outlier_col`` uint16 (int32 above 65,535 columns) and
    ``outlier_value`` float16 [outliers]: values that *replace* the decoded weight, in compressed sparse rows.
    ``input_scale`` float32 [1], of schemes with static activations: the step of the inputs that the weight multiplies.
    """

    shape: tuple[int, int]
    scheme: Scheme
    weight: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    outlier_ptr: torch.Tensor | None = None
    outlier_col: torch.Tensor | None = None
    outlier_value: torch.Tensor | None = None
    input_scale: torch.Tensor | None = None

    @property
    def outlier_count(self) -> int:
        """Number of weights that are kept in 16 bits."""
        return 0 if self.outlier_value is None else self.outlier_value.numel()

    def codes(self) -> torch.Tensor:
        """The codes, uint8 [out, in]."""
        out_features, in_features = self.shape
        return unpack(self.weight, self.scheme.bits, out_features * in_features).view(self.shape)

    def outlier_positions(self) -> torch.Tensor:
        """Flat int64 positions of the outliers in the weight, ascending."""
        if self.outlier_ptr is None or self.outlier_col is None:
            return torch.empty(0, dtype=torch.int64, device=self.weight.device)
        return flat_positions(self.outlier_ptr, self.outlier_col, self.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The float weight [out, in] with the outliers in place; computed in float32, rounded once to ``dtype``."""
        dense = self.dequantize_dense()
        if self.outlier_value is not None:
            dense.view(-1).index_copy_(0, self.outlier_positions(), self.outlier_value.float())
        return dense.to(dtype)

    def dequantize_dense(self) -> torch.Tensor:
        """The decoded float32 weight [out, in] without the outliers."""
        zero_point = None if self.zero_point is None else self.zero_point.view(-1)
        codebook = None if self.codebook is None else self.codebook.float()
        fit = Fit(self.scale.float().view(-1), zero_point, codebook)
        return decode(to_blocks(self.codes().float(), self.scheme), self.scheme, fit).view(self.shape)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The stored tensors by their names on disk; :meth:`from_tensors` is the exact inverse."""
        return {name: getattr(self, name) for name in _NAMES if getattr(self, name) is not None}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, torch.Tensor], scheme: Scheme, shape: tuple[int, int]
    ) -> QuantizedTensor:
        """Rebuild from :meth:`to_tensors`. A missing tensor, wrong shape or dtype raises CheckpointError."""
        outliers = tensors["outlier_value"].numel() if "outlier_value" in tensors else 0
        expected = tensor_specs(scheme, shape, outliers)
        for name in expected:
            if name not in tensors:
                raise CheckpointError(f"quantized tensor lacks {name!r}; quantize the model again")
        for name, (dtype, size) in expected.items():
            found = tensors[name]
            if found.dtype != dtype or tuple(found.shape) != size:
                raise CheckpointError(
                    f"quantized tensor {name!r} is {found.dtype} {list(found.shape)}, expected {dtype} {list(size)}"
                )
        return cls(shape=shape, scheme=scheme, **{name: tensors[name] for name in expected})


TensorSpecs = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def tensor_specs(scheme: Scheme, shape: tuple[int, int], outliers: int | None = None) -> TensorSpecs:
    """Names, dtypes and shapes of the stored tensors of a weight [out, in] under a scheme.

    ``outliers`` is the number of outliers; by default what the scheme's budget gives (a sigma threshold
    has no budget, so there it must be given).
    """
    size = shape[0] * shape[1]
    groups = scheme.groups(shape)
    specs: TensorSpecs = {
        "weight": (torch.uint8, (packed_size(size, scheme.bits),)),
        "scale": (torch.float16 if scheme.granularity == "group" else torch.float32, groups),
    }
    if not scheme.symmetric:
        specs["zero_point"] = (torch.uint8, groups)
    if scheme.codebook_shared is not None:
        books = 1 if scheme.codebook_shared else groups[0] * groups[1]
        specs["codebook"] = (torch.float16, (books, 2**scheme.bits))
    if scheme.outliers is not None:
        count = count_outliers(scheme.outliers, size) if outliers is None else outliers
        if count is None:
            raise SchemeError("the number of outliers of a sigma threshold depends on the weights")
        specs["outlier_ptr"] = (torch.int32, (shape[0] + 1,))
        specs["outlier_col"] = (_column_dtype(shape[1]), (count,))
        specs["outlier_value"] = (torch.float16, (count,))
    if scheme.activations == "static":
        specs["input_scale"] = (torch.float32, (1,))
    return specs


def quantize_tensor(
    weight: torch.Tensor,
    scheme: Scheme,
    *,
    hessian: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> QuantizedTensor:
    """Quantize a float weight [out, in]; pure, deterministic, device preserving.

    The dense part is fitted without the outliers. ``hessian`` float32 [in, in], the second moments of the layer's
    inputs, is for strategies that need it, ``input_scale`` float32 [1], the step of the inputs, for schemes with static
    activations. ``generator`` (CPU) serves the rule ``random`` only; without one it starts
    from seed 0. NaN, infinite or (for outliers) over 65,504 values raise :class:`WeightError`; a group that does not
    divide, or a missing Hessian or step, raises :class:`SchemeError`.
    """
    return quantize_with_error(weight, scheme, hessian=hessian, input_scale=input_scale, generator=generator)[0]


def quantize_with_error(
    weight: torch.Tensor,
    scheme: Scheme,
    *,
    hessian: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[QuantizedTensor, float]:
    """:func:`quantize_tensor` and the relative error ``||W - Q(W)||_F / ||W||_F``, outliers in place.

    The error costs little where the codes are at hand. It does not depend on the number of threads; a weight of zeros
    has the error 0.
    """
    if weight.dim() != 2:
        raise WeightError(f"the weight must be a matrix [out, in], its shape is {list(weight.shape)}")
    shape = (weight.shape[0], weight.shape[1])
    groups = scheme.groups(shape)
    if (scheme.activations == "static") != (input_scale is not None):
        raise SchemeError("a step of the inputs is for static activations, and they need one; quantize a whole model")
    weight = weight.detach().to(torch.float32).contiguous()
    check_finite(weight)
    positions = find_outliers(weight, scheme, generator, hessian)
    fit = as_stored(_fit(weight, scheme, positions, hessian), scheme)
    blocks = to_blocks(weight, scheme)
    codes = encode(blocks, scheme, fit) if fit.codes is None else fit.codes.float()
    tensors = {"weight": pack(codes.to(torch.uint8), scheme.bits), "scale": fit.scale.view(groups)}
    if fit.zero_point is not None:
        tensors["zero_point"] = fit.zero_point.view(groups)
    if fit.codebook is not None:
        tensors["codebook"] = fit.codebook
    if positions is not None:
        tensors |= sparse_rows(weight if fit.shift is None else weight + fit.shift.view(shape), positions)
    if input_scale is not None:
        tensors["input_scale"] = input_scale
    specs = tensor_specs(scheme, shape, 0 if positions is None else positions.numel())
    difference = decode(codes, scheme, fit).sub_(blocks).view(shape)
    if positions is not None:
        difference.view(-1)[positions] = tensors["outlier_value"].float() - weight.view(-1)[positions]
    energy = _energy(weight)
    tensor = QuantizedTensor(
        shape=shape, scheme=scheme, **{name: value.to(specs[name][0]) for name, value in tensors.items()}
    )
    return tensor, math.sqrt(_energy(difference) / energy) if energy else 0.0


def _energy(matrix: torch.Tensor) -> float:
    """Sum of the squares of a float32 matrix."""
    return float(group_sum(matrix.square()[None]))


def find_outliers(
    weight: torch.Tensor,
    scheme: Scheme,
    generator: torch.Generator | None = None,
    hessian: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Flat positions of the outliers of a finite float32 weight [out, in]; None when the scheme keeps none.

    A ``hessian`` weighs the errors of the rule ``error`` by what they cost at the output.
    """
    if scheme.outliers is None:
        return None
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if scheme.outliers.rule != "error":
        return select(weight, scheme.outliers, None, generator)
    errors = outlier_errors(weight, scheme)
    if hessian is not None:
        errors.view(weight.shape).mul_(error_weights(hessian, scheme.options.get("damping", DAMPING)))
    return select(weight, scheme.outliers, errors, None)


def outlier_errors(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """``|W - Q(W)|`` of a finite float32 weight [out, in] as the rule ``error`` measures it, in the blocks' shape.

    The grid is fitted without the Gaussian tail: a grid fitted to all weights has been stretched by the very outliers
    it should find.
    """
    assert scheme.outliers is not None
    tail = select(weight, replace(scheme.outliers, rule="tail", spread="matrix"), None, None)
    fit = _fit(weight, grid_scheme(scheme), tail, None)
    blocks = to_blocks(weight, scheme)
    return round_trip(blocks, scheme, fit).sub_(blocks).abs_()


def _fit(weight: torch.Tensor, scheme: Scheme, outliers: torch.Tensor | None, hessian: torch.Tensor | None) -> Fit:
    """Run the strategy on a weight [out, in] with the outliers set aside."""
    find = get_strategy(scheme)
    options = dict(scheme.options)
    if needs_hessian(scheme):
        options["hessian"] = hessian
    if outliers is None or not outliers.numel():
        return find(to_blocks(weight, scheme), scheme, None, **options)
    values = weight.clone()
    values.view(-1)[outliers] = 0
    keep = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    keep.view(-1)[outliers] = False
    return find(to_blocks(values, scheme), scheme, to_blocks(keep, scheme), **options)


def flat_positions(ptr: torch.Tensor, col: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Flat int64 positions of compressed sparse rows in a matrix [out, in]."""
    counts = (ptr[1:] - ptr[:-1]).long()
    starts = torch.arange(0, shape[0] * shape[1], shape[1], device=ptr.device)
    return torch.repeat_interleave(starts, counts, output_size=col.numel()).add_(col.long())


def check_finite(weight: torch.Tensor) -> None:
    """Raise :class:`WeightError` for an empty weight or one with NaN or infinite values."""
    if weight.numel() == 0:
        raise WeightError(f"the weight is empty, shape {list(weight.shape)}")
    low, high = weight.aminmax()
    if not (low.isfinite() and high.isfinite()):
        bad = weight.numel() - int(weight.isfinite().sum())
        raise WeightError(f"{bad} of {weight.numel()} weights are NaN or infinite; repair the checkpoint first")


def sparse_rows(weight: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The entries of a float32 weight [out, in] at ascending flat ``positions``: the tensors
    ``outlier_ptr``, ``outlier_col`` and ``outlier_value``.

    One beyond the range of float16 raises :class:`WeightError`.
    """
    values = weight.view(-1)[positions]
    if values.numel() and float(values.abs().max()) > _HALF_MAX:
        raise WeightError(f"an outlier of {float(values.abs().max()):.3g} exceeds the float16 range 65504")
    ptr, col = sparse_places(positions, (weight.shape[0], weight.shape[1]))
    return {"outlier_ptr": ptr, "outlier_col": col, "outlier_value": values.to(torch.float16)}


def sparse_places(positions: torch.Tensor, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """``outlier_ptr`` and ``outlier_col`` of ascending flat ``positions``; :func:`flat_positions` is the inverse."""
    out_features, in_features = shape
    ptr = torch.zeros(out_features + 1, dtype=torch.int32, device=positions.device)
    ptr[1:] = torch.bincount(positions // in_features, minlength=out_features).cumsum(0)
    return ptr, (positions % in_features).to(_column_dtype(in_features))


def _column_dtype(columns: int) -> torch.dtype:
    return torch.uint16 if columns <= _SHORT_COLUMNS else torch.int32
