"""What the tests of whole zero-shot runs share."""

import lowbit
from lowbit import ZeroShotOptions
from lowbit.zeroshot import METHODS
from lowbit.zeroshot.objective import OutputObjective, Yardstick
from lowbit.zeroshot.student import load_teacher

RUN = {"steps": 4, "batch_size": 4, "lengths": (2, 8), "candidates": 4, "learning_rate": 5e-3}
RUN |= {"evaluate_steps": 2, "save_steps": 0, "precision": "fp32", "ratio": 1}
TEXTS = ["the film was good", "a bad book", "it was a very poor song", "great"]


def chosen(**changes):
    """Options of a short run."""
    return ZeroShotOptions(**(RUN | changes))


def zeroshot(model, output, recipe="w2a8", method="zsaq", texts=None, **changes):
    """A short run, of the options that the method takes."""
    return lowbit.zeroshot(model, output, recipe, method=method, texts=texts, options=taken(method, **changes))


def taken(method, **changes):
    """Those options of a short run that a method takes, and changes."""
    run = {name: value for name, value in RUN.items() if method not in METHODS or name in METHODS[method].takes}
    return ZeroShotOptions(**(run | changes))


def gap_of(folder, model, pairs=0.0, generator=None):
    """The distance of a written result to the float model that it was made of."""
    teacher = load_teacher(folder)
    return Yardstick(teacher, OutputObjective(teacher.model, 1.0, 1.0), pairs, generator)(lowbit.load(model))
