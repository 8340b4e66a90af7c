"""What is done to one weight: the frozen value :class:`Scheme`, and its short form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lowbit.errors import SchemeError

CODEBOOKS = ("codebook", "shared-codebook")
LEVELS = ("full", "midrise", *CODEBOOKS)
GRANULARITIES = ("tensor", "channel", "group")
_ACTIVATION_FORMS = {"float": "", "dynamic": "a8", "static": "a8s"}  # in the short form
ACTIVATIONS = tuple(_ACTIVATION_FORMS)
OUTLIER_RULES = ("tail", "magnitude", "error", "random")
SPREADS = ("matrix", "model")
DEFAULT_OUTLIER_SHARE = 0.005

_SHORT_FORM = re.compile(
    r"w(?P<bits>\d+)(?P<activations>a8s?)?(?:g(?P<group>\d+)|(?P<tensor>t))?(?:o(?P<outliers>\d+(?:\.\d+)?))?"
)


@dataclass(frozen=True)
class OutlierRule:
    """Which weights stay in 16 bits.

    ``rule`` ranks the weights of one matrix: ``tail`` by ``|w - mean|`` (Gaussian tail, PreQuant),
    ``magnitude`` by ``|w|``, ``error`` by ``|w - Q(w)|``, ``random`` by a seeded draw (a control).
    ``share`` is the fraction kept, 0 to 0.5; alternatively ``sigma`` keeps every weight further than
    ``sigma`` standard deviations from the mean (``tail`` only). ``spread`` says what the share is a share of: each
    ``matrix``, or the whole ``model``, whose matrices then get as many as their errors ask for (``error`` only).
    """

    rule: str = "error"
    share: float | None = DEFAULT_OUTLIER_SHARE
    sigma: float | None = None
    spread: str = "matrix"

    def __post_init__(self) -> None:
        if self.rule not in OUTLIER_RULES:
            raise SchemeError(f"unknown outlier rule {self.rule!r}; use one of {', '.join(OUTLIER_RULES)}")
        if (self.share is None) == (self.sigma is None):
            raise SchemeError("an outlier rule needs exactly one of `share` and `sigma`")
        for value in (self.share, self.sigma):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise SchemeError(f"`share` and `sigma` of an outlier rule are numbers, not {value!r}")
        if self.share is not None and not 0 < self.share <= 0.5:
            raise SchemeError(f"outlier share {self.share} is outside (0, 0.5]; 0.005 keeps 0.5 %")
        if self.sigma is not None and not (self.rule == "tail" and self.sigma > 0):
            raise SchemeError("`sigma` is a positive number of standard deviations and needs the rule `tail`")
        if self.spread not in SPREADS:
            raise SchemeError(f"unknown spread {self.spread!r} of outliers; use one of {', '.join(SPREADS)}")
        if self.spread == "model" and self.rule != "error":
            raise SchemeError("outliers are spread over the model by their error; use the rule `error`")


@dataclass(frozen=True)
class Scheme:
    """How one weight [out, in] is stored.

    ``bits`` 2 to 8; ``levels`` ``full`` (-2^(b-1) .. 2^(b-1)-1 steps), ``midrise`` (symmetric half
    steps, no zero; the default at 2 bits), ``codebook`` (2^b free values per step size; the default of
    ``kmeans``) or ``shared-codebook`` (2^b free values for the whole weight, in units of each step size);
    ``symmetric`` or with an integer zero point;
    ``granularity`` of the step size: one per ``tensor``, per ``channel`` (output feature) or per
    ``group`` of ``group_size`` consecutive inputs; the ``strategy`` that finds the step size, with its
    ``options``; the ``outliers`` rule, or None; ``activations``: inputs stay in ``float``, or are rounded to 8 bits,
    ``dynamic`` with a step per token or ``static`` with one stored step for all. Invalid values raise
    :class:`SchemeError`.
    """

    bits: int = 4
    levels: str = ""
    symmetric: bool = True
    granularity: str = "channel"
    group_size: int | None = None
    strategy: str = "mse"
    options: Mapping[str, Any] = field(default_factory=dict)
    outliers: OutlierRule | None = field(default_factory=OutlierRule)
    activations: str = "float"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise SchemeError(f"weight bits must be a whole number from 2 to 8, not {self.bits!r}")
        if not self.levels:
            object.__setattr__(self, "levels", _default_levels(self.bits, self.symmetric, self.strategy))
        if self.levels not in LEVELS:
            raise SchemeError(f"unknown levels {self.levels!r}; use one of {', '.join(LEVELS)}")
        if self.levels != "full" and not self.symmetric:
            raise SchemeError(f"`{self.levels}` levels have no zero point; use levels `full` with one")
        if self.granularity not in GRANULARITIES:
            raise SchemeError(f"unknown granularity {self.granularity!r}; use one of {', '.join(GRANULARITIES)}")
        if self.activations not in ACTIVATIONS:
            raise SchemeError(f"unknown activations {self.activations!r}; use one of {', '.join(ACTIVATIONS)}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise SchemeError("`group_size` is needed with the granularity `group`, and only there")
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 2):
            raise SchemeError(f"group size must be a whole number from 2, not {self.group_size!r}; 32 to 128 is usual")
        if not isinstance(self.symmetric, bool) or not isinstance(self.options, Mapping):
            raise SchemeError("`symmetric` is true or false, and `options` is a mapping of option names to values")
        if self.outliers is not None and not isinstance(self.outliers, OutlierRule):
            raise SchemeError(f"`outliers` is an outlier rule (with `rule` and `share`) or null, not {self.outliers!r}")
        object.__setattr__(self, "options", dict(self.options))

    @property
    def codebook_shared(self) -> bool | None:
        """Whether one codebook serves the whole weight; None where levels are uniform."""
        return self.levels == "shared-codebook" if self.levels in CODEBOOKS else None

    @property
    def offset(self) -> float:
        """Code that decodes to zero, for symmetric uniform schemes: weight = (code - offset) * scale."""
        return 2.0 ** (self.bits - 1) - (0.5 if self.levels == "midrise" else 0.0)

    def groups(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the step sizes of a weight [out, in]: [1, 1], [out, 1] or [out, in / group].

        Raises :class:`SchemeError` when the group does not divide the input width.
        """
        out_features, in_features = shape
        if self.granularity == "tensor":
            return 1, 1
        if self.group_size is None:
            return out_features, 1
        if in_features % self.group_size:
            raise SchemeError(
                f"group size {self.group_size} does not divide the input width {in_features}; "
                f"use a divisor of {in_features} or the granularity `channel`"
            )
        return out_features, in_features // self.group_size

    def with_bits(self, bits: int) -> Scheme:
        """The same scheme in another width; levels that are the default follow the default of that width."""
        default = self.levels == _default_levels(self.bits, self.symmetric, self.strategy)
        return replace(self, bits=bits, levels="" if default else self.levels)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scheme:
        """Build from a mapping of field names; an unknown key raises :class:`SchemeError`."""
        values = dict(check_keys(values, cls, "scheme"))
        outliers = values.get("outliers")
        if isinstance(outliers, Mapping):
            values["outliers"] = OutlierRule(**check_keys(outliers, OutlierRule, "outlier rule"))
        return cls(**values)

    @classmethod
    def parse(cls, text: str | Mapping[str, Any] | Scheme) -> Scheme:
        """Read the short form ``w<bits>[a8|a8s][g<size>|t][o<percent>]``, a mapping, or pass a scheme through.

        ``w4`` is 4 bits per channel with 0.5 % outliers; ``w4a8`` the same with inputs in 8 bits per token, ``w4a8s``
        with one stored step for them; ``w4g64`` one step per 64 inputs; ``w4t`` one per tensor; ``w4o1`` 1 % outliers
        and ``w4o0`` none.
        """
        if isinstance(text, Scheme):
            return text
        if isinstance(text, Mapping):
            return cls.from_dict(text)
        match = _SHORT_FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise SchemeError(
                f"cannot read the scheme {text!r}; write w<bits>[a8|a8s][g<group>|t][o<percent>], "
                "as in w4, w3g64 or w2o1"
            )
        activations = {form: name for name, form in _ACTIVATION_FORMS.items()}[match["activations"] or ""]
        scheme = cls(bits=int(match["bits"]), activations=activations)
        if match["group"]:
            scheme = replace(scheme, granularity="group", group_size=int(match["group"]))
        elif match["tensor"]:
            scheme = replace(scheme, granularity="tensor")
        if match["outliers"] is not None:
            percent = float(match["outliers"])
            scheme = replace(scheme, outliers=OutlierRule(share=percent / 100) if percent else None)
        return scheme

    def __str__(self) -> str:
        """Short form, followed by whatever the short form cannot say."""
        text = f"w{self.bits}{_ACTIVATION_FORMS[self.activations]}"
        text += {"tensor": "t", "channel": "", "group": f"g{self.group_size}"}[self.granularity]
        if self.outliers is None:
            text += "o0"
        elif self.outliers.share is not None and self.outliers.share != DEFAULT_OUTLIER_SHARE:
            text += f"o{self.outliers.share * 100:g}"
        default = Scheme(bits=self.bits)
        notes = [self.levels] if self.levels != _default_levels(self.bits, True, self.strategy) else []
        notes += [] if self.symmetric else ["asymmetric"]
        notes += [self.strategy] if self.strategy != default.strategy else []
        notes += [f"{key}={value}" for key, value in self.options.items()]
        if self.outliers is not None and self.outliers.rule != "error":
            notes.append(self.outliers.rule)
        if self.outliers is not None and self.outliers.sigma is not None:
            notes.append(f"{self.outliers.sigma:g} sigma")
        if self.outliers is not None and self.outliers.spread == "model":
            notes.append("outliers spread over the model")
        return f"{text} ({', '.join(notes)})" if notes else text


def _default_levels(bits: int, symmetric: bool, strategy: str) -> str:
    if strategy == "kmeans":
        return "codebook"
    return "midrise" if bits == 2 and symmetric else "full"


def check_keys(values: Mapping[str, Any], cls: type, what: str) -> Mapping[str, Any]:
    """Return ``values`` when each key is a field of the dataclass ``cls``, else raise :class:`SchemeError`."""
    known = cls.__dataclass_fields__  # type: ignore[attr-defined]
    for key in values:
        if key not in known:
            raise SchemeError(f"unknown {what} key {key!r}; known keys: {', '.join(known)}")
    return values
