"""ZSAQ, its ablations, and the methods without data that it is compared with, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.calibration import Text
from lowbit.errors import DataError, SchemeError
from lowbit.zeroshot.options import ZeroShotOptions
from lowbit.zeroshot.sources import GaussianEmbeddings, GeneratorSource, RandomTokens, Source
from lowbit.zeroshot.student import Teacher
from lowbit.zeroshot.texts import RealTexts, SampledTexts


@dataclass(frozen=True)
class Method:
    """``source`` of the batches, None where nothing is trained; whether the source ``ascends``.

    ``sharp``: the student's weights are perturbed by SAM; ``by_blocks``: each block is distilled by itself.
    """

    source: str | None
    ascends: bool = False
    sharp: bool = False
    by_blocks: bool = False

    @property
    def takes(self) -> frozenset[str]:
        """The options that it has a use for: what all have, and what comes with its source and its players."""
        found = _ALWAYS | _OF_SOURCES[self.source]
        if self.source is not None:
            found |= _TRAINING
        if self.sharp:
            found |= _SAM
        if self.ascends:
            found |= _ASCENT
        return found


_ALWAYS = frozenset(("temperature", "hidden", "seed"))  # the first two make the distance that every result tells
_TRAINING = frozenset(
    (
        *("steps", "batch_size", "lengths", "learning_rate", "warmup", "schedule", "evaluate_steps", "patience"),
        *("save_steps", "precision", "checkpointing"),
    )
)
_OF_SOURCES: dict[str | None, frozenset[str]] = {
    None: frozenset(("pairs",)),
    "real": frozenset(),
    "generator": frozenset(("pairs", "generator", "candidates")),
    "random": frozenset(("pairs",)),
    "gaussian": frozenset(("pairs",)),
    "sampled": frozenset(("pairs", "generator")),
}
_SAM = frozenset(("rho", "relative", "adaptive", "per_tensor", "perturb"))
_ASCENT = frozenset(("generator_rate", "ratio", "diversity"))

METHODS = {
    "zsaq": Method("generator", ascends=True, sharp=True),
    "no-sga": Method("generator", sharp=True),
    "no-sam": Method("generator", ascends=True),
    "random": Method("random"),
    "gaussian": Method("gaussian"),
    "sampled": Method("sampled"),
    "real": Method("real"),
    "zeroquant": Method("random", by_blocks=True),
    "rtn": Method(None),
}
_SOURCES: dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerBase, ZeroShotOptions], Source]] = {
    "generator": GeneratorSource,
    "random": RandomTokens,
    "gaussian": GaussianEmbeddings,
    "sampled": SampledTexts,
}


def find_method(name: str, options: ZeroShotOptions, texts: Sequence[Text] | None) -> Method:
    """The method of a name.

    One that is unknown, or has no use for an option that is not as by default, raises SchemeError; texts that only
    ``real`` takes DataError.
    """
    if name not in METHODS:
        raise SchemeError(f"unknown method {name!r}; use one of {', '.join(METHODS)}")
    method = METHODS[name]
    if (method.source == "real") != (texts is not None):
        raise DataError("the method `real` needs texts, and no other method takes any")
    _check_options(name, method, options)
    return method


def _check_options(name: str, method: Method, options: ZeroShotOptions) -> None:
    """Refuse an option that the method would not look at."""
    for option in dataclasses.fields(options):
        if option.name not in method.takes and getattr(options, option.name) != option.default:
            raise SchemeError(f"the method {name!r} has no use for --{option.name.replace('_', '-')}; leave it out")


def make_source(method: Method, teacher: Teacher, options: ZeroShotOptions, texts: Sequence[Text] | None) -> Source:
    """What makes the batches of a method that trains."""
    if method.source == "real":
        assert texts is not None
        return RealTexts(teacher.model, teacher.tokenizer, options, texts)
    assert method.source is not None
    return _SOURCES[method.source](teacher.model, teacher.tokenizer, options)
