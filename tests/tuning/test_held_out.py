import pytest
import torch
from transformers import DataCollatorWithPadding

from lowbit.adapter import load_classifier
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode
from lowbit.tuning.batches import one_item
from lowbit.tuning.held_out import held_out_loss
from tests.tiny import random_states, toy_rows


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_the_mean_over_all_rows(tiny, batch_size):
    folder = tiny.model("bert")
    model, _ = load_classifier(folder, ("no", "yes"), seed=0)
    tokenizer = load_tokenizer(folder)
    rows = encode(toy_rows(), tokenizer, 16)
    collate, states = DataCollatorWithPadding(tokenizer), random_states()
    model.train()
    found = held_out_loss(model, rows, collate, one_item, batch_size)
    assert (model.training, random_states()) == (True, states)
    with torch.no_grad():
        expected = float(model.eval()(**collate(rows)).loss)
    assert found == pytest.approx(expected, rel=1e-5)
    model.eval()
    assert held_out_loss(model, rows, collate, one_item, batch_size) == found
    assert not model.training


def test_items_weigh_the_rows(tiny):
    folder = tiny.model("bert")
    model, _ = load_classifier(folder, ("no", "yes"), seed=0)
    tokenizer = load_tokenizer(folder)
    rows, collate = encode(toy_rows(rows=2), tokenizer, 16), DataCollatorWithPadding(tokenizer)
    first, second = (held_out_loss(model, [row], collate, one_item, 1) for row in rows)
    counts = {len(row["input_ids"]): count for row, count in zip(rows, (3, 1), strict=True)}
    found = held_out_loss(model, rows, collate, lambda row: counts[len(row["input_ids"])], 1)
    assert found == pytest.approx((3 * first + second) / 4)
