"""Execution of quantized tensors: each kernel stands beside the reference it is tested against."""

from lowbit.kernels.linear import outlier_gradient, quant_linear

__all__ = ["outlier_gradient", "quant_linear"]
