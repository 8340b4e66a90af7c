"""ZSAQ, its ablations, and the methods without data that it is compared with, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.errors import DataError, SchemeError
from lowbit.zeroshot.options import ZeroShotOptions
from lowbit.zeroshot.sources import GaussianEmbeddings, GeneratorSource, RandomTokens, Source
from lowbit.zeroshot.student import Teacher
from lowbit.zeroshot.texts import RealTexts, SampledTexts, Text


@dataclass(frozen=True)
class Method:
    """``source`` of the batches, None where nothing is trained; whether the source ``ascends``.

    ``sharp``: the student's weights are perturbed by SAM; ``by_blocks``: each block is distilled by itself.
    """

    source: str | None
    ascends: bool = False
    sharp: bool = False
    by_blocks: bool = False


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
    """The method of a name; one that is unknown, or does not go with what is given, raises SchemeError or DataError."""
    if name not in METHODS:
        raise SchemeError(f"unknown method {name!r}; use one of {', '.join(METHODS)}")
    method = METHODS[name]
    if (method.source == "real") != (texts is not None):
        raise DataError("the method `real` needs texts, and no other method takes any")
    if options.generator is not None and method.source not in ("generator", "sampled"):
        raise SchemeError(f"the method {name!r} has no generator; leave it out")
    return method


def make_source(method: Method, teacher: Teacher, options: ZeroShotOptions, texts: Sequence[Text] | None) -> Source:
    """What makes the batches of a method that trains."""
    if method.source == "real":
        assert texts is not None
        return RealTexts(teacher.model, teacher.tokenizer, options, texts)
    assert method.source is not None
    return _SOURCES[method.source](teacher.model, teacher.tokenizer, options)
