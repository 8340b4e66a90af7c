"""The plan: a recipe resolved against one model, module by module, with the reason for everything skipped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from lowbit.arch import ARCHITECTURES, own_tensors, roles, weight_shape
from lowbit.errors import CheckpointError, SchemeError, UnsupportedModelError, naming
from lowbit.nn import QuantModule
from lowbit.outliers import count_outliers
from lowbit.qtensor import tensor_specs
from lowbit.recipe import Recipe
from lowbit.scheme import DEFAULT_OUTLIER_SHARE, Scheme
from lowbit.strategies import needs_hessian

CONFIG_VERSION = 1


@dataclass(frozen=True)
class PlanEntry:
    """One module that holds parameters or stored buffers.

    ``name`` is relative to the base model; ``kind`` is ``linear``, ``conv1d``, ``embedding``, ``tied`` or
    ``skipped``; ``scheme`` is None for the last two. ``reason`` says why a module is skipped, or what the choice of
    its width went by. ``weights`` counts all its parameters
    and stored buffers; ``bytes_before`` and ``bytes_after`` are what they take
    on disk.
    """

    name: str
    kind: str
    shape: tuple[int, int] | None
    scheme: Scheme | None
    reason: str
    weights: int
    bytes_before: int
    bytes_after: int

    @property
    def needs_hessian(self) -> bool:
        """Whether its strategy asks for the second moments of its inputs."""
        return self.scheme is not None and needs_hessian(self.scheme)

    @property
    def is_static(self) -> bool:
        """Whether its inputs are rounded by a stored step."""
        return self.scheme is not None and self.scheme.activations == "static"


@dataclass(frozen=True)
class Plan:
    """What is done to each module of one model, in model order.

    ``errors``: the relative weight error of each quantized module by name, known once it is quantized; no part of
    what is planned, so plans are compared without it.
    """

    model_type: str
    model_class: str
    recipe: Recipe
    entries: tuple[PlanEntry, ...]
    errors: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever uses the result should know; empty for a model type of the table."""
        if self.model_type in ARCHITECTURES:
            return ()
        return (f"model type {self.model_type!r} has no row in the table; generic rule",)

    @property
    def quantized(self) -> tuple[PlanEntry, ...]:
        """The entries with a scheme."""
        return tuple(entry for entry in self.entries if entry.scheme is not None)

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters in the model's own dtype."""
        return sum(entry.bytes_before for entry in self.entries)

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors after quantization."""
        return sum(entry.bytes_after for entry in self.entries)

    @property
    def effective_bits(self) -> float:
        """Bits of all tensors of the quantized block linears, biases excluded, over their weights."""
        linears = [(e.scheme, e.shape) for e in self.quantized if e.kind != "embedding"]
        stored = sum(payload_bytes(scheme, shape) for scheme, shape in linears if scheme and shape)
        weights = sum(math.prod(shape) for _, shape in linears if shape)
        return 8 * stored / weights if weights else 0.0

    @property
    def model_bits(self) -> float:
        """Bits of the whole model over all its parameters."""
        return 8 * self.bytes_after / sum(entry.weights for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as written to ``plan.json``."""
        entries = []
        for entry in self.entries:
            values = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
            values["scheme"] = None if entry.scheme is None else str(entry.scheme)
            entries.append(values)
        return {
            "model_type": self.model_type,
            "model_class": self.model_class,
            "notes": list(self.notes),
            "recipe": self.recipe.to_dict(),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "effective_bits": round(self.effective_bits, 4),
            "model_bits": round(self.model_bits, 4),
            "modules": entries,
        }


def make_plan(model: PreTrainedModel, recipe: Recipe, *, strict: bool = True) -> Plan:
    """Resolve ``recipe`` against a model; its weights are not read, so it may live on the meta device.

    Raises UnsupportedModelError for a quantized model, and SchemeError for a scheme that does not fit a module, with
    the module's name, or (``strict``; not for a recipe that fitted another task class) for a pattern that matches
    nothing.
    """
    if any(isinstance(module, QuantModule) for module in model.modules()):
        raise UnsupportedModelError("the model is quantized already; start from the float model")
    found = roles(model)
    if strict:
        recipe.check_patterns([role.name for role in found if role.kind not in ("tied", "skipped")])
    entries = []
    for role in found:
        module, prefix = model.get_submodule(role.path), f"{role.path}." if role.path else ""
        parameters = {
            name: parameter
            for name, parameter in own_tensors(module).items()
            if prefix + name not in model.all_tied_weights_keys  # counted, and stored, where it is tied to
        }
        weights = sum(parameter.numel() for parameter in parameters.values())
        before = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
        if role.kind in ("tied", "skipped"):
            entries.append(PlanEntry(role.name, role.kind, None, None, role.reason, weights, before, before))
            continue
        with naming(role.name):
            scheme = recipe.scheme_for(role.name, role.kind)
        if scheme is None:
            entries.append(PlanEntry(role.name, "skipped", None, None, "recipe", weights, before, before))
            continue
        shape = weight_shape(module)
        weight = parameters["weight"]
        with naming(role.name):
            payload = payload_bytes(scheme, shape)
        after = before - weight.numel() * weight.element_size() + payload
        entries.append(PlanEntry(role.name, role.kind, shape, scheme, "", weights, before, after))
    if not any(entry.scheme for entry in entries):
        raise SchemeError("the recipe quantizes nothing; leave fewer modules out")
    return Plan(model.config.model_type, type(model).__name__, recipe, tuple(entries))


def with_schemes(plan: Plan, schemes: Mapping[str, Scheme], reasons: Mapping[str, str] | None = None) -> Plan:
    """The plan with other schemes (and reasons) for some of its quantized modules, by name."""
    entries = []
    for entry in plan.entries:
        scheme = schemes.get(entry.name)
        if entry.scheme is not None and scheme is not None:
            assert entry.shape is not None
            added = payload_bytes(scheme, entry.shape) - payload_bytes(entry.scheme, entry.shape)
            reason = (reasons or {}).get(entry.name, entry.reason)
            entry = replace(entry, scheme=scheme, reason=reason, bytes_after=entry.bytes_after + added)
        entries.append(entry)
    return replace(plan, entries=tuple(entries))


def payload_bytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Bytes of the stored tensors; a sigma threshold, whose count depends on the weights, is taken as 0.5 %."""
    size = shape[0] * shape[1]
    rule = scheme.outliers
    unknown = rule is not None and count_outliers(rule, size) is None
    specs = tensor_specs(scheme, shape, round(DEFAULT_OUTLIER_SHARE * size) if unknown else None)
    return sum(math.prod(dimensions) * dtype.itemsize for dtype, dimensions in specs.values())


@dataclass(frozen=True)
class ModuleSpec:
    """What a loader must know of one quantized module: its kind, shape [out, in] and scheme."""

    kind: str
    shape: tuple[int, int]
    scheme: Scheme


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json``: the recipe, and the quantized modules with their errors."""
    groups: list[dict[str, Any]] = []
    for entry in plan.quantized:
        assert entry.scheme is not None
        assert entry.shape is not None
        shared = {"kind": entry.kind, "shape": list(entry.shape), "scheme": entry.scheme.to_dict()}
        group = next((g for g in groups if all(g[key] == value for key, value in shared.items())), None)
        if group is None:
            group = {**shared, "modules": []}
            groups.append(group)
        group["modules"].append(entry.name)
    return {
        "quant_method": "lowbit",
        "version": CONFIG_VERSION,
        "recipe": plan.recipe.to_dict(),
        "groups": groups,
        "reasons": {entry.name: entry.reason for entry in plan.quantized if entry.reason},
        "errors": dict(plan.errors),
    }


def module_specs(config: Mapping[str, Any]) -> dict[str, ModuleSpec]:
    """Read :func:`quantization_config` back: specs by relative module name. Damage raises CheckpointError."""
    if config.get("version") != CONFIG_VERSION:
        raise CheckpointError(
            f"this backbone has format version {config.get('version')!r}, this lowbit reads {CONFIG_VERSION}; "
            "quantize the model again"
        )
    try:
        return {
            name: ModuleSpec(group["kind"], (group["shape"][0], group["shape"][1]), Scheme.from_dict(group["scheme"]))
            for group in config["groups"]
            for name in group["modules"]
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"quantization_config in config.json is damaged: {error}") from error
