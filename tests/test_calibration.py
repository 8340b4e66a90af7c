import pytest
import torch
from torch import nn

from lowbit import calibration
from lowbit.calibration import generated_inputs, input_steps, second_moments, text_inputs, whole_words
from lowbit.errors import DataError, WeightError
from tests.models import WORDS, load, tiny_tokenizer
from tests.tiny import BACKBONES

MODULES = {
    "bert": "encoder.layer.1.output.dense",
    "t5": "decoder.block.1.layer.1.EncDecAttention.k",
    "gpt2": "transformer.h.1.mlp.c_proj",
}


@pytest.fixture(scope="module")
def opened(tiny):
    def open_one(arch, class_name=None):
        tokenizer = tiny_tokenizer(arch)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return load(class_name or BACKBONES[arch], tiny.model(arch, class_name)), tokenizer

    return open_one


def test_words_are_whole_alphabetic_and_in_the_order_of_the_vocabulary():
    class Vocabulary:
        all_special_tokens = ("Ġend",)

        def __init__(self, *pieces):
            self.get_vocab = lambda: {piece: index for index, piece in reversed(list(enumerate(pieces)))}

    assert whole_words(Vocabulary("Ġthe", "ing", "Ġof", "Ġ1990", "Ġa", "Ġend")) == ["the", "of"]
    assert whole_words(Vocabulary("▁we", "▁", "▁Zeit", "s")) == ["we", "Zeit"]
    assert whole_words(Vocabulary("the", "##ing", "!", "of", "x")) == ["the", "of"]
    with pytest.raises(DataError, match="no whole words to generate inputs from; give calibration text"):
        whole_words(Vocabulary("##ing", "!"))


@pytest.mark.parametrize("arch", BACKBONES)
def test_generated_inputs_are_texts_that_every_architecture_reads(opened, arch):
    model, tokenizer = opened(arch)
    before = torch.get_rng_state()
    batches = generated_inputs(model, tokenizer, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(len(batch["input_ids"]) for batch in batches) == 512
    again, other = (generated_inputs(model, tokenizer, seed=seed) for seed in (3, 4))
    assert all(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(batches, again, strict=True))
    assert any(not torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(batches, other, strict=True))
    counts = torch.bincount(torch.cat([batch["input_ids"].flatten() for batch in batches]))
    words = [word for word in whole_words(tokenizer) if word in WORDS]
    ids = tokenizer.convert_tokens_to_ids(words)
    assert counts[ids[0]] > 1.5 * counts[ids[5]] > 0  # earlier words more often
    with torch.no_grad():
        model(**batches[0])


def test_generated_pairs_repeat_from_none_to_all_words_of_the_first_text(opened, monkeypatch):
    model, tokenizer = opened("bert")
    monkeypatch.setattr(calibration, "text_inputs", lambda _model, _tokenizer, texts: texts)
    shares = []
    for pair in generated_inputs(model, tokenizer, pairs=1.0):
        assert all(text.endswith(".") for text in pair)
        first, second = (text.removesuffix(".").split() for text in pair)
        assert 2 <= len(first) <= len(second) <= len(first) + 1
        shares.append(sum(one == two for one, two in zip(first, second, strict=False)) / len(first))
    assert len(shares) == 512
    assert sum(share == 1 for share in shares) > 30
    assert sum(share < 0.3 for share in shares) > 100


def test_a_share_of_generated_inputs_are_pairs(opened):
    model, tokenizer = opened("bert")
    inputs = {share: generated_inputs(model, tokenizer, pairs=share) for share in (0.0, 0.3)}
    rows = {
        share: [tokenizer.decode(ids[mask.bool()]) for batch in batches for ids, mask in _rows(batch)]
        for share, batches in inputs.items()
    }
    end = tokenizer.sep_token
    singles = [row for row in rows[0.3] if row.count(end) == 1]
    assert len(rows[0.3]) == len(rows[0.0]) == 512
    assert 0.6 < len(singles) / 512 < 0.8
    assert set(singles) < set(rows[0.0])  # the others are as ever
    assert all(row.count(end) == 1 for row in rows[0.0])


def _rows(batch):
    return zip(batch["input_ids"], batch["attention_mask"], strict=True)


def test_pairs_of_texts_are_as_the_tokenizer_makes_them(opened):
    model, tokenizer = opened("bert")
    batches = text_inputs(model, tokenizer, [("a very poor book", "it was great"), "good film", ("bad", "song")])
    assert [len(batch["input_ids"]) for batch in batches] == [1, 2]
    expected = tokenizer(["bad", "a very poor book"], ["song", "it was great"], padding=True, return_tensors="pt")
    assert batches[1].keys() == expected.keys()
    assert all(torch.equal(batches[1][name], expected[name]) for name in expected)


def test_texts_are_cut_where_the_model_ends_and_empty_ones_are_left_out(opened):
    model, tokenizer = opened("bert")
    batches = text_inputs(model, tokenizer, ["good film", "", " ", "the " * 100])
    (batch,) = batches
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 22]
    with pytest.raises(DataError, match="calibration text is empty"):
        text_inputs(model, tokenizer, ["", "\t"])


@pytest.mark.parametrize("arch", MODULES)
def test_second_moments_are_those_of_what_the_module_sees_without_padding(opened, arch):
    model, tokenizer = opened(arch)
    model.train()
    batches = text_inputs(model, tokenizer, ["good film", "a very poor book", "it was great the song was fine"])
    path, seen = MODULES[arch], []
    moments = second_moments(model, [path], batches)
    assert model.training
    model.eval()
    for text in ("good film", "a very poor book", "it was great the song was fine"):
        hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        (single,) = text_inputs(model, tokenizer, [text])
        if "decoder_input_ids" in single:  # what the batch starts with is its padding or end
            (whole,) = batches
            row = ["good film", "a very poor book", "it was great the song was fine"].index(text)
            single["decoder_input_ids"][0, 0] = whole["decoder_input_ids"][row, 0]
        with torch.no_grad():
            model(**single)
        hook.remove()
    rows = torch.cat(seen)
    torch.testing.assert_close(moments[path], rows.t() @ rows, rtol=1e-3, atol=1e-4)
    assert not model.get_submodule(path)._forward_pre_hooks


class Two(nn.Module):
    """A model of two linears that read the same rows, and one that is never called."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.one, self.two, self.unused = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, rows, attention_mask):
        return self.one(rows) + self.two(rows)


def seen(*rows):
    """Batches of rows [texts, tokens, 8] of which the last token of each text is padding."""
    mask = torch.ones(rows[0].shape[:2]).index_fill_(1, torch.tensor([rows[0].shape[1] - 1]), 0)
    return [{"rows": batch, "attention_mask": mask} for batch in rows]


def test_input_steps_have_the_smallest_squared_error_without_padding():
    x = torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(0)) ** 3
    x[:, :, -1] = 1e6
    steps = input_steps(Two(), ["one", "two"], seen(*x))
    assert torch.equal(steps["one"], steps["two"])
    assert (steps["one"].dtype, steps["one"].shape) == (torch.float32, (1,))
    rows = x[:, :, :-1]
    tried = rows.abs().max() / 127 * torch.arange(0.05, 1.1, 0.005)
    errors = torch.stack(
        [((rows / s).round().clamp(-127, 127) * s - rows).square().sum() for s in (*tried, *steps.values())]
    )
    assert errors[-1] < 1.02 * errors[:-2].min()


def test_input_steps_follow_a_rare_large_token():
    x = torch.randn(1, 100, 21, 8, generator=torch.Generator().manual_seed(0))
    x[0, 57, 3, 2] = 1000
    steps = input_steps(Two(), ["one"], seen(*x))
    assert steps["one"].item() > 0.9 * 1000 / 127


def test_input_steps_of_no_usable_inputs():
    zeros = torch.zeros(1, 2, 3, 8)
    assert input_steps(Two(), ["one"], seen(*zeros))["one"].item() == 1
    with pytest.raises(DataError, match=r"^unused: no calibration input reaches it"):
        input_steps(Two(), ["one", "unused"], seen(*zeros))
    with pytest.raises(WeightError, match=r"^two: its inputs are NaN or infinite"):
        input_steps(Two(), ["two"], seen(*(zeros + torch.nan)))
