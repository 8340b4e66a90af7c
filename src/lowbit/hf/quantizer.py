"""The transformers plug-in: loading, quantizing on load, and saving through ``from_pretrained``/``save_pretrained``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers import HfQuantizer, register_quantizer

from lowbit.arch import base_prefix, find_module, is_head, relative_name, swap_modules, untie, weight_shape
from lowbit.checkpoint import (
    Entries,
    check_bytes,
    check_input_scales,
    manifest_metadata,
    read_manifest,
    stored_modules,
    tensor_entry,
)
from lowbit.errors import CheckpointError
from lowbit.hf.config import LowbitConfig
from lowbit.nn import CODES, QuantModule, TiedQuantLinear, empty_tensor
from lowbit.quantize import quantize_model


@register_quantizer("lowbit")
class LowbitQuantizer(HfQuantizer):
    """Puts quantized modules in place before a backbone is loaded, or quantizes a float model after loading."""

    def __init__(self, quantization_config: LowbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._asked: dict[str, torch.Tensor] = {}
        self._expected: dict[str, torch.dtype] = {}
        self._renamings: list[WeightRenaming] = []

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Check the files byte by byte, then swap modules on the meta device."""
        self._asked = {name: parameter.data for name, parameter in model.named_parameters()}
        if not self.pre_quantized:
            return
        if not checkpoint_files:
            raise CheckpointError("a lowbit backbone is loaded from files; pass a directory, not a state dict")
        files = [Path(file) for file in checkpoint_files]
        entries = read_manifest(*files)
        for file in files:
            check_bytes(file, entries)
        specs = self.quantization_config.modules()
        stored = stored_modules(entries, specs, files[0].parent)
        check_input_scales(files, specs, stored)
        untie(model, entries)
        tensors = {}
        self.quantization_config.keep({name for name in specs if find_module(model, name)})
        for name, spec in self.quantization_config.modules().items():
            path = find_module(model, name)
            assert path is not None
            if weight_shape(model.get_submodule(path)) != spec.shape:
                found = weight_shape(model.get_submodule(path))
                raise CheckpointError(f"{name}: the model asks for shape {found}, the backbone has {spec.shape}")
            values = entries.get(f"{stored[name]}.outlier_value")
            tensors[path] = empty_tensor(spec.scheme, spec.shape, None if values is None else values.shape[0])
            self._renamings.append(_renaming(stored[name]))
        swap_modules(model, tensors)
        name, path = next(iter(stored.items()))
        self._follow_prefix(model, path.removesuffix(name), entries)
        self._expected = {
            f"{path}.{name}": buffer.dtype
            for path, module in model.named_modules()
            if isinstance(module, QuantModule)
            for name, buffer in module.named_buffers(recurse=False)
        }

    def _follow_prefix(self, model: PreTrainedModel, prefix: str, entries: Entries) -> None:
        """Make sure that the files hold the whole base model of this class, under whatever prefix."""
        for name, _ in model.named_parameters():
            shared = name in model.all_tied_weights_keys or is_head(model, name.rpartition(".")[0])
            if not shared and prefix + relative_name(model, name) not in entries:
                kind = type(model).__name__
                raise CheckpointError(f"the backbone lacks {name!r} of a {kind}; load the class of its config.json")
        if prefix not in ("", f"{model.base_model_prefix}."):  # LlamaForQuestionAnswering has one of its own
            self._renamings.append(WeightRenaming(f"^{re.escape(prefix)}", base_prefix(model)))

    def get_weight_conversions(self) -> list[WeightRenaming]:
        """On disk the codes are called ``weight``, in memory ``codes``; another class may have another prefix."""
        return self._renamings

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Quantize a float model, or make sure that every payload arrived as it was stored."""
        self._check_parameters(model)
        if not self.pre_quantized:
            plan = quantize_model(model, self.quantization_config.parsed_recipe())
            attach(model, LowbitConfig.from_plan(plan), self)
            return
        for name, dtype in self._expected.items():
            path, _, part = name.rpartition(".")
            buffer = model.get_submodule(path)._buffers[part]
            assert buffer is not None
            if buffer.is_meta or not getattr(buffer, "_is_hf_initialized", False):
                raise CheckpointError(f"{path}: {part} was not filled from the checkpoint; load the whole directory")
            if buffer.dtype != dtype:
                # Only half-precision models with fp32 exceptions widen outliers; narrowing them back is exact.
                model.get_submodule(path)._buffers[part] = buffer.to(dtype)
        _start_biases(model)
        attach(model, self.quantization_config, self)

    def _check_parameters(self, model: PreTrainedModel) -> None:
        """Compare shapes and dtypes with those asked for: with a quantizer not every version of transformers does."""
        kept_wide = set(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            asked = self._asked.get(name, parameter.data)
            if parameter.shape != asked.shape:
                raise CheckpointError(
                    f"{name!r} is {list(parameter.shape)} in the checkpoint, the model asks for {list(asked.shape)}; "
                    "start from the model without a task head"
                )
            if parameter.dtype != asked.dtype and not kept_wide.intersection(name.split(".")):
                parameter.data = parameter.data.to(asked.dtype)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The tensors by their names on disk, and the manifest."""
        tensors = disk_tensors(model)
        entries = {name: tensor_entry(tensor) for name, tensor in tensors.items()}
        return tensors, manifest_metadata(entries)

    def is_serializable(self, **kwargs: Any) -> bool:
        """Backbones can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """The Trainer may train the float parameters and, after ``tuning.prepare``, the outliers."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """No adapters of another library are needed for training."""
        return True

    @property
    def is_compileable(self) -> bool:
        """``torch.compile`` can trace the modules."""
        return True

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        raise CheckpointError("dequantizing in place is not supported; load the float model instead")


def _start_biases(model: PreTrainedModel) -> None:
    """Set biases that the files lack to 0: transformers knows how to start those of a new float head only."""
    for module in model.modules():
        bias = module.bias if isinstance(module, TiedQuantLinear) else None
        if bias is not None and not getattr(bias, "_is_hf_initialized", False):
            torch.nn.init.zeros_(bias)


def attach(model: PreTrainedModel, config: LowbitConfig, quantizer: LowbitQuantizer | None = None) -> None:
    """Make a model with quantized modules known to transformers, so that ``save_pretrained`` writes a backbone."""
    if quantizer is None:
        quantizer = LowbitQuantizer(config, pre_quantized=True)
    quantizer.quantization_config = config
    model.config.quantization_config = config
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = config.quant_method
    # Saved names are the model's own: renamings that an old checkpoint needed must not come back.
    model._weight_conversions = []
    model.add_model_tags(["lowbit", "quantized"])  # of the card that its push_to_hub makes


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether a loaded model is a backbone of lowbit."""
    return isinstance(getattr(model.config, "quantization_config", None), LowbitConfig)


def disk_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every tensor of a quantized model by its name on disk, tied ones once.

    A model with an adapter of the library peft on it raises CheckpointError: a backbone has no place for factors.
    """
    if getattr(model, "peft_config", None):
        raise CheckpointError("the model has low-rank factors on it, which a backbone cannot hold; take them off first")
    tensors: dict[str, torch.Tensor] = {}
    payloads = {path: module for path, module in model.named_modules() if isinstance(module, QuantModule)}
    tied = set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        path, _, part = name.rpartition(".")
        if path in payloads and part != "bias":
            if part == CODES:
                tensors |= {f"{path}.{key}": value for key, value in payloads[path].payload().items()}
        elif name not in tied:
            tensors[name] = tensor
    return tensors


def _renaming(path: str) -> WeightRenaming:
    return WeightRenaming(source_patterns=rf"^{re.escape(path)}\.weight$", target_patterns=f"{path}.{CODES}")
