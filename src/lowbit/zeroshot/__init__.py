"""Zero-shot quantization: a student and a generator play against each other, without data."""

from lowbit.zeroshot.adaptation import FeatureAdaptation, Mixing, aligned_adaptation, random_adaptation
from lowbit.zeroshot.agreement import agreement
from lowbit.zeroshot.batches import BatchSource, GeneratedBatch, Template
from lowbit.zeroshot.diversity import row_entropy
from lowbit.zeroshot.embedding import Mixture, mixed_embeddings
from lowbit.zeroshot.generator import LanguageModelGenerator, StateGenerator, TransformerGenerator
from lowbit.zeroshot.landscape import landscape, sharpness
from lowbit.zeroshot.methods import METHODS
from lowbit.zeroshot.minimax import Counts, Descent, SamSga
from lowbit.zeroshot.options import ZeroShotOptions, ZeroShotResult, parse_recipe, short_form
from lowbit.zeroshot.run import zeroshot
from lowbit.zeroshot.sam import Ball, Target

__all__ = [
    "METHODS",
    "Ball",
    "BatchSource",
    "Counts",
    "Descent",
    "FeatureAdaptation",
    "GeneratedBatch",
    "LanguageModelGenerator",
    "Mixing",
    "Mixture",
    "SamSga",
    "StateGenerator",
    "Target",
    "Template",
    "TransformerGenerator",
    "ZeroShotOptions",
    "ZeroShotResult",
    "agreement",
    "aligned_adaptation",
    "landscape",
    "mixed_embeddings",
    "parse_recipe",
    "random_adaptation",
    "row_entropy",
    "sharpness",
    "short_form",
    "zeroshot",
]
