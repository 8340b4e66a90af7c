"""Whole layers of post-norm encoders as one call each, where they are built like BERT's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.kernels import EncoderLayer, Norm, encoder_layer
from lowbit.nn import Int8Linear

# Models whose layers are those of BERT: no relative terms in the attention, norms after the sums.
_LIKE_BERT = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "inner": "intermediate.dense",
    "outer": "output.dense",
}
_NORMS = {"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}


def fuse_layers(model: PreTrainedModel) -> int:
    """Give the encoder layers of BERT and its kin a forward that is one call; returns how many.

    It is taken where hidden states are float32 and the attention is torch's own; with a cache, with states of another
    encoder, or with a mask that is no bool one, the modules run one by one as before. Activations must be in the
    linears already.
    """
    if model.config.model_type not in _LIKE_BERT or model.config.is_decoder:
        return 0
    layers = [module for module in model.modules() if _is_layer(module)]
    for layer in layers:
        layer.forward = _Layer(layer, model.config, layer.forward)
    return len(layers)


def _is_layer(module: nn.Module) -> bool:
    if not hasattr(module, "intermediate") or not hasattr(module, "attention"):
        return False
    linears = [module.get_submodule(path) for path in _LINEARS.values()]
    norms = [module.get_submodule(path) for path in _NORMS.values()]
    return (
        all(isinstance(linear, Int8Linear) for linear in linears)
        and all(isinstance(norm, nn.LayerNorm) and norm.weight.dtype is torch.float32 for norm in norms)
        and isinstance(module.get_submodule("intermediate.intermediate_act_fn"), nn.Identity)
    )


class _Layer:
    """The forward of a layer; ``modules`` is the one that it had."""

    def __init__(self, layer: nn.Module, config: Any, modules: Callable[..., Any]) -> None:
        self.config, self.modules = config, modules
        self.linears: list[Any] = [layer.get_submodule(path) for path in _LINEARS.values()]
        self.norms: list[Any] = [layer.get_submodule(path) for path in _NORMS.values()]
        self.attention: Any = layer.get_submodule("attention.self")
        self.activated: Any = layer.get_submodule(_LINEARS["inner"])
        self.held: tuple[Any, ...] = ()
        self.parts: EncoderLayer | None = None

    def __call__(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if (
            self.config._attn_implementation != "sdpa"
            or hidden_states.dtype is not torch.float32
            or not (attention_mask is None or attention_mask.dtype is torch.bool)
            or any(isinstance(arg, torch.Tensor) for arg in args)
            or any(kwargs.get(name) is not None for name in ("encoder_hidden_states", "cache", "past_key_values"))
        ):
            return self.modules(hidden_states, attention_mask, *args, **kwargs)
        return encoder_layer(hidden_states, self.current(), attention_mask)

    def current(self) -> EncoderLayer:
        """What the modules hold now: a task adapter may have put other tensors into them."""
        norms = [tensor for norm in self.norms for tensor in (norm.weight.data, norm.bias.data)]
        held = (*(id(linear.layout) for linear in self.linears), *(tensor.data_ptr() for tensor in norms))
        if self.parts is None or held != self.held:
            self.held = held
            self.parts = EncoderLayer(
                **{name: linear.layout for name, linear in zip(_LINEARS, self.linears, strict=True)},
                norm1=Norm(norms[0], norms[1], self.norms[0].eps),
                norm2=Norm(norms[2], norms[3], self.norms[1].eps),
                heads=self.attention.num_attention_heads,
                scaling=self.attention.attention_head_size**-0.5,
                activation=self.activated.activation,
            )
        return self.parts
