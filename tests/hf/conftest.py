"""Backbones that the tests of loading and saving share."""

import pytest
import torch

from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
from tests.models import save_tiny


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """Gives the backbone directory of a tiny model; each is made once."""
    folder, made = tmp_path_factory.mktemp("backbones"), {}

    def make(arch, class_name, recipe="w4", dtype=torch.float32):
        key = f"{arch}-{class_name}-{recipe}-{dtype}"
        if key not in made:
            source = save_tiny(folder / f"{len(made)}/m", arch, class_name, dtype=dtype)
            made[key] = quantize_checkpoint(source, Recipe.parse(recipe), folder / f"{len(made)}/q").path
        return made[key]

    return make
