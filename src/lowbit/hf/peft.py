"""Low-rank factors beside quantized linears, through the library peft. Importing this module needs it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.errors import AdapterError, MissingExtraError
from lowbit.nn import QuantLinear

try:
    from peft import LoraConfig, LoraModel, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper
except ImportError as error:
    raise MissingExtraError("low-rank adapters need the library peft: pip install 'lowbit[peft]'") from error

_ADAPTER = "default"  # peft's name of the only adapter on a model
_PREFIX = "base_model.model."  # what stands before the model's own names in files of peft
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_INITIAL = (True, False, "gaussian")  # those that leave the weight below as it is


Pair = tuple[torch.Tensor, torch.Tensor]


class QuantLoraLinear(nn.Module, LoraLayer):
    """``y = base(x) + scaling * B(A(dropout(x)))`` over a frozen :class:`QuantLinear`; A [rank, in], B [out, rank].

    ``x`` [..., in] to [..., out], in the dtype that the quantized linear gives. An initialisation that would change the
    quantized weight, and merging into it, raise AdapterError. Source: LoRA (Hu et al. 2021, arXiv 2106.09685).
    """

    base_layer: QuantLinear
    lora_A: Any
    lora_B: Any
    lora_dropout: Any
    scaling: Any
    active_adapters: Any
    update_layer: Any

    def __init__(
        self,
        base_layer: QuantLinear,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        **kwargs: Any,
    ) -> None:
        if config.init_lora_weights not in _INITIAL:
            raise AdapterError(
                f"initialising by {config.init_lora_weights!r} changes the weight below, and a quantized one stays as "
                "it is; leave init_lora_weights as it is by default, or tune with the method loftq"
            )
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, QuantLinear)
        return module.in_features, module.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The quantized product plus that of each active adapter."""
        result: torch.Tensor = self.base_layer(x)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.lora_A:
                down, up = self.lora_A[name], self.lora_B[name]
                product = up(down(self.lora_dropout[name](x.to(down.weight.dtype))))
                result = result + (self.scaling[name] * product).to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refused."""
        raise AdapterError(
            "low-rank factors cannot be merged into a quantized weight: the sum would have to be quantized again; "
            "keep the adapter beside its backbone"
        )


class _Tuner(LoraModel):
    """peft's own, but for what it asks of each weight: its device, which costs decoding the weight twenty times."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # the factors are on the right device since they were made


def for_quantized(config: LoraConfig) -> LoraConfig:
    """``config``, told how to adapt quantized linears: what ``get_peft_model`` and ``PeftModel`` need to be given."""
    config._register_custom_module({QuantLinear: QuantLoraLinear})
    return config


def add_factors(model: PreTrainedModel, rank: int, linears: Collection[str], heads: Collection[str]) -> None:
    """Put factors beside the quantized ``linears``, train a copy of the modules ``heads``, and freeze all the rest.

    Both are paths. The product of new factors is 0; A is drawn from torch's global state.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(linears), modules_to_save=sorted(heads) or None)
    _Tuner(model, for_quantized(config), _ADAPTER)


def factors(model: PreTrainedModel) -> dict[str, Pair]:
    """The parameters A [rank, in] and B [out, rank] by the path of their linear, in model order."""
    return {
        path: (module.lora_A[_ADAPTER].weight, module.lora_B[_ADAPTER].weight)
        for path, module in model.named_modules()
        if isinstance(module, QuantLoraLinear)
    }


def factor_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Factors and head by their names in a file of peft; the tensors share memory with the model."""
    state = get_peft_model_state_dict(model, adapter_name=_ADAPTER, save_embedding_layers=False)
    return {_PREFIX + name: tensor for name, tensor in state.items()}


def split_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, Pair], dict[str, torch.Tensor]]:
    """The tensors of a file of peft: A and B by the path of their linear, and the rest by its name in the model.

    A factor without its counterpart raises AdapterError.
    """
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    down, up = ([name.removesuffix(part) for name in own if name.endswith(part)] for part in (_DOWN, _UP))
    for path in {*down} ^ {*up}:
        raise AdapterError(f"the adapter has one of two factors for {path!r}; fetch it again")
    pairs = {path: (own.pop(path + _DOWN), own.pop(path + _UP)) for path in down}
    return pairs, own


def factor_config(model: PreTrainedModel, base: str | None) -> str:
    """The ``adapter_config.json`` of the factors on a model; ``base`` is the backbone's name on the hub, if any."""
    values = model.peft_config[_ADAPTER].to_dict()
    values |= {"inference_mode": True, "base_model_name_or_path": base}
    return json.dumps({name: _plain(value) for name, value in sorted(values.items())}, indent=1) + "\n"


def remove_factors(model: PreTrainedModel) -> None:
    """Take factors and trained heads off again: the modules below are in their place, as they were."""
    for path, module in _wrappers(model).items():
        model.set_submodule(path, _below(module))
    del model.peft_config


@contextmanager
def factors_aside(model: PreTrainedModel) -> Iterator[None]:
    """Have the modules below factors and trained heads in their place for a while."""
    wrappers = _wrappers(model)
    for path, module in wrappers.items():
        model.set_submodule(path, _below(module))
    try:
        yield
    finally:
        for path, module in wrappers.items():
            model.set_submodule(path, module)


def _wrappers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """What peft put in the place of other modules, by path."""
    kinds = (QuantLoraLinear, ModulesToSaveWrapper)
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def _below(module: nn.Module) -> nn.Module:
    below = module.base_layer if isinstance(module, QuantLoraLinear) else module.original_module
    assert isinstance(below, nn.Module)
    return below


def _plain(value: Any) -> Any:
    """Sets as sorted lists, so that equal settings give equal bytes."""
    return sorted(value) if isinstance(value, set) else value
