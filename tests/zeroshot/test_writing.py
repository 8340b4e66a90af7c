"""Text that a language model writes."""

import pytest
import torch

from lowbit.zeroshot.pieces import ordinary_ids
from lowbit.zeroshot.writing import Writer, _drawn
from tests.models import tiny_model, tiny_tokenizer
from tests.tiny import random_states


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("arch", "class_name"), [("opt", "OPTForCausalLM"), ("gpt2", "GPT2LMHeadModel")])
def test_text_starts_anywhere_and_goes_on_as_the_model_says(arch, class_name):
    """Three greedy tokens, as without a cache; what is drawn afterwards has the model's own probabilities."""
    model, tokenizer = tiny_model(arch, class_name), tiny_tokenizer(arch)
    before = random_states()
    writer = Writer(model, tokenizer)
    written = writer.write(400, 5, rng(), lambda output: output.logits)
    assert random_states() == before
    start, ids = tokenizer("")["input_ids"], ordinary_ids(tokenizer)
    assert writer.start.tolist() == start
    assert writer.room == model.config.max_position_embeddings - len(start)
    assert set(written[:, 0].tolist()) == set(ids.tolist())
    given = torch.cat([torch.tensor(start, dtype=torch.long).expand(400, -1), written], dim=1)
    with torch.no_grad():
        logits = model(input_ids=given).logits[..., ids]
    for place in (1, 2, 3):
        chosen_ids = ids[logits[:, len(start) + place - 1].argmax(-1)]
        assert torch.equal(written[:, place], chosen_ids)
    chances = logits[:, len(start) + 3].softmax(-1)
    places = torch.searchsorted(ids, written[:, 4].contiguous())
    mean = chances.gather(1, places[:, None]).mean()
    assert float(mean) == pytest.approx(float(chances.square().sum(1).mean()), abs=0.02)


def test_columns_are_drawn_by_their_chances_and_impossible_ones_never():
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [1.0, 0, 0, 0, 0, 0]]).repeat(5000, 1)
    drawn = _drawn(chances, rng()).view(5000, 2)
    shares = drawn[:, 0].bincount(minlength=6) / 5000
    torch.testing.assert_close(shares, chances[0], atol=0.02, rtol=0)
    assert shares[[0, 2, 5]].eq(0).all()
    assert drawn[:, 1].eq(0).all()
