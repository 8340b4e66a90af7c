"""What is done to a whole model: the default scheme, per-module overrides, skips and embeddings."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.errors import SchemeError
from lowbit.scheme import Scheme, check_keys


@dataclass(frozen=True)
class Override:
    """Modules whose relative name matches the shell-style pattern ``match`` get ``scheme``."""

    match: str
    scheme: Scheme


@dataclass(frozen=True)
class Recipe:
    """The default ``scheme``, ordered ``overrides`` (first match wins), patterns to ``skip``, and ``embeddings``.

    ``embeddings`` is the scheme of word embeddings, or None to keep them in float. Patterns are shell-style and
    match names relative to the base model, as ``lowbit plan`` prints them. ``target_bits``: the effective bits of the
    block linears; those that take the default scheme then get the width that suits each, in place of the scheme's.
    """

    scheme: Scheme = field(default_factory=Scheme)
    overrides: tuple[Override, ...] = ()
    skip: tuple[str, ...] = ()
    embeddings: Scheme | None = field(default_factory=lambda: embedding_scheme(8))
    target_bits: float | None = None

    def __post_init__(self) -> None:
        bits = self.target_bits
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int | float) or not bits > 0):
            raise SchemeError(f"`target_bits` is a number of bits per weight, as 3.2, not {bits!r}")
        if self.embeddings is not None:
            _check_embeddings(self.embeddings)

    def scheme_for(self, name: str, kind: str) -> Scheme | None:
        """Scheme of a module by its relative name and kind; None when the recipe leaves it in float.

        An override that would round the inputs of a word embedding raises :class:`SchemeError`.
        """
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.skip):
            return None
        override = self._override(name)
        if override is None:
            return self.embeddings if kind == "embedding" else self.scheme
        if kind == "embedding":
            _check_embeddings(override.scheme)
        return override.scheme

    def chooses_bits(self, name: str, kind: str) -> bool:
        """Whether the width of a quantized module is left to ``target_bits``."""
        return self.target_bits is not None and kind != "embedding" and self._override(name) is None

    def _override(self, name: str) -> Override | None:
        return next((o for o in self.overrides if fnmatch.fnmatchcase(name, o.match)), None)

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise :class:`SchemeError` for a pattern that matches none of the quantizable modules ``names``."""
        for pattern in (*self.skip, *(override.match for override in self.overrides)):
            if not fnmatch.filter(names, pattern):
                raise SchemeError(
                    f"the recipe's pattern {pattern!r} matches no quantizable module; "
                    f"`lowbit plan` prints the names, the first one is {names[0]!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`parse` reads it back."""
        return {
            "scheme": self.scheme.to_dict(),
            "overrides": [{"match": o.match, "scheme": o.scheme.to_dict()} for o in self.overrides],
            "skip": list(self.skip),
            "embeddings": "float" if self.embeddings is None else self.embeddings.to_dict(),
            "target_bits": self.target_bits,
        }

    @classmethod
    def parse(cls, source: str | Path | Mapping[str, Any] | Scheme | Recipe) -> Recipe:
        """Read a scheme's short form (``w4``), a mapping, a YAML or JSON file, or pass a recipe through.

        Unknown keys and malformed values raise :class:`SchemeError`.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Scheme):
            return cls(scheme=source)
        if isinstance(source, Mapping):
            return _from_mapping(source)
        if str(source).endswith((".yaml", ".yml", ".json")):
            return _from_mapping(_read(Path(source)))
        return cls(scheme=Scheme.parse(str(source)))


def embedding_scheme(bits: int | str) -> Scheme | None:
    """Scheme of a word-embedding table: 8 or 4 bits per row without outliers, or None for ``float``."""
    if bits == "float":
        return None
    if str(bits) not in ("8", "4"):
        raise SchemeError(f"embeddings can be 8, 4 or float, not {bits!r}")
    return Scheme(bits=int(bits), strategy="minmax" if int(bits) == 8 else "mse", outliers=None)


def _check_embeddings(scheme: Scheme) -> None:
    if scheme.activations != "float":
        raise SchemeError("word embeddings have no inputs to round; leave `activations` out of their scheme")


def _from_mapping(values: Mapping[str, Any]) -> Recipe:
    values = dict(check_keys(values, Recipe, "recipe"))
    if "scheme" in values:
        values["scheme"] = Scheme.parse(values["scheme"])
    overrides = []
    for entry in _list(values, "overrides"):
        if not isinstance(entry, Mapping) or set(entry) != {"match", "scheme"} or not isinstance(entry["match"], str):
            raise SchemeError(f"a recipe override has exactly a pattern `match` and a `scheme`, not {entry!r}")
        overrides.append(Override(entry["match"], Scheme.parse(entry["scheme"])))
    embeddings = values.get("embeddings", 8)
    short = not isinstance(embeddings, Mapping | Scheme)
    values["embeddings"] = embedding_scheme(embeddings) if short else Scheme.parse(embeddings)
    skip = _list(values, "skip")
    for pattern in skip:
        if not isinstance(pattern, str):
            raise SchemeError(f"the recipe's `skip` lists patterns of module names, not {pattern!r}")
    values |= {"overrides": tuple(overrides), "skip": tuple(skip)}
    return Recipe(**values)


def _list(values: Mapping[str, Any], key: str) -> Sequence[Any]:
    """The list under ``key``; a lone string would otherwise pass as a list of letters."""
    found = values.get(key, ())
    if not isinstance(found, list | tuple):
        raise SchemeError(f"the recipe's `{key}` must be a list, not {found!r}")
    return found


def _read(path: Path) -> Mapping[str, Any]:
    """The mapping in a recipe file."""
    if not path.is_file():
        raise SchemeError(f"recipe file {path} does not exist")
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        # Not one reader for both: YAML takes JSON's 1e-05 for a string and refuses its tabs.
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemeError(f"recipe file {path} is not valid YAML or JSON: {error}") from error
    if not isinstance(values, Mapping):
        raise SchemeError(f"recipe file {path} must hold a mapping, not {type(values).__name__}")
    return values
