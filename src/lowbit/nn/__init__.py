"""Modules over quantized weights."""

from lowbit.nn.embedding import QuantEmbedding, TiedQuantEmbedding
from lowbit.nn.fake import FakeQuantLinear
from lowbit.nn.int8 import Int8Linear, Patch
from lowbit.nn.linear import QuantLinear, TiedQuantLinear
from lowbit.nn.overlay import SPARSE, overlay, rows_of, widen
from lowbit.nn.payload import CODES, QuantModule, empty_tensor

__all__ = [
    "CODES",
    "SPARSE",
    "FakeQuantLinear",
    "Int8Linear",
    "Patch",
    "QuantEmbedding",
    "QuantLinear",
    "QuantModule",
    "TiedQuantEmbedding",
    "TiedQuantLinear",
    "empty_tensor",
    "overlay",
    "rows_of",
    "widen",
]
