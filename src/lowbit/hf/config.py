"""``LowbitConfig``: the ``quantization_config`` of transformers for this method."""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit.plan import CONFIG_VERSION, ModuleSpec, Plan, module_specs, quantization_config
from lowbit.recipe import Recipe


@register_quantization_config("lowbit")
class LowbitConfig(QuantizationConfigMixin):
    """What to do on loading a float model, or what was done to a stored one.

    ``recipe``: a scheme's short form (``"w4"``), a recipe file, mapping, Scheme or Recipe. ``groups`` is filled by
    quantization: the explicit list of quantized modules that the loader trusts; so are, by module, ``reasons`` (what a
    budget went by) and ``errors``: the relative weight error ``||W - Q(W)|| / ||W||`` when it was quantized. Tuning and
    merging leave them as they are.

    ``AutoModel.from_pretrained(float_folder, quantization_config=LowbitConfig("w4"))`` quantizes on loading.
    """

    def __init__(
        self,
        recipe: str | Path | Mapping[str, Any] | Recipe = "w4",
        groups: list[dict[str, Any]] | None = None,
        version: int = CONFIG_VERSION,
        reasons: dict[str, str] | None = None,
        errors: dict[str, float] | None = None,
        **other: Any,
    ) -> None:
        other.pop("quant_method", None)
        if other:
            warnings.warn(f"unknown keys in a lowbit quantization_config: {sorted(other)}", stacklevel=2)
        self.quant_method = "lowbit"
        self.version = version
        self.recipe = Recipe.parse(recipe).to_dict()
        self.groups = groups or []
        self.reasons = reasons or {}
        self.errors = errors or {}

    @classmethod
    def from_plan(cls, plan: Plan) -> LowbitConfig:
        """The configuration of a model that was quantized by ``plan``."""
        return cls(**quantization_config(plan))

    def parsed_recipe(self) -> Recipe:
        """The recipe as a value."""
        return Recipe.parse(self.recipe)

    def keep(self, names: Container[str]) -> None:
        """Forget the modules that a task class does not have, as T5EncoderModel has no decoder."""
        kept = [{**group, "modules": [n for n in group["modules"] if n in names]} for group in self.groups]
        self.groups = [group for group in kept if group["modules"]]
        self.reasons = {name: reason for name, reason in self.reasons.items() if name in names}
        self.errors = {name: error for name, error in self.errors.items() if name in names}

    def modules(self) -> dict[str, ModuleSpec]:
        """Specs of the quantized modules by relative name; damage raises CheckpointError."""
        return module_specs({"version": self.version, "groups": self.groups})
