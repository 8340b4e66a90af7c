import os
import random
import shutil
from pathlib import Path

import pytest

import lowbit
from lowbit.checkpoint import load_tokenizer
from lowbit.errors import DataError, SchemeError, UnsupportedModelError
from lowbit.scoring import score_text
from tests.models import WORDS, file_bytes
from tests.tiny import random_states

CAUSAL_AND_SEQ2SEQ = ["opt", "gpt2", "t5"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of 300 tokens."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    draw = random.Random(5)
    path.write_text("".join(draw.choice(WORDS) + draw.choice(" \n") for _ in range(300)))
    return path


@pytest.fixture(scope="module")
def opt_mini():
    """A small trained OPT: ``opt-mini`` under ``LOWBIT_MODELS``, or under ``../shared/models`` beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "models"
    folder = Path(os.environ.get("LOWBIT_MODELS") or beside) / "opt-mini"
    if not folder.is_dir():
        pytest.skip(f"needs a trained model: no folder {folder} (set LOWBIT_MODELS)")
    return folder


@pytest.mark.parametrize("arch", CAUSAL_AND_SEQ2SEQ)
def test_eight_bits_are_close_to_float_and_two_are_not(tiny, text, arch):
    exact = lowbit.perplexity(tiny.model(arch), text, window=16)
    assert exact.scored == 300
    w8, w2 = (
        lowbit.perplexity(tiny.backbone(arch, recipe=recipe), text, window=16).perplexity for recipe in ("w8o0", "w2o0")
    )
    assert w8 == pytest.approx(exact.perplexity, rel=0.01)
    assert abs(w2 - exact.perplexity) > 5 * abs(w8 - exact.perplexity)


def test_a_masked_backbone(tiny, text, tmp_path):
    backbone = shutil.copytree(tiny.backbone("bert", "BertForMaskedLM"), tmp_path / "backbone")
    tokenizer = load_tokenizer(backbone)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(backbone)
    score = lowbit.perplexity(backbone, text, window=14, stride=4, sample=60, seed=3)
    assert (score.kind, score.tokens, score.scored) == ("masked", 300, 60)
    assert score == lowbit.perplexity(backbone, text, window=14, stride=4, sample=60, seed=3)
    assert score.perplexity != lowbit.perplexity(backbone, text, window=14, stride=4, sample=60, seed=4).perplexity


def test_it_is_score_text_of_the_loaded_model(tiny, text):
    backbone = tiny.backbone("opt")
    calls = []
    found = lowbit.perplexity(
        backbone, str(text), window=20, stride=7, batch_size=2, progress=lambda *call: calls.append(call)
    )
    model, tokenizer = lowbit.load(backbone), load_tokenizer(backbone)
    assert found == score_text(model, tokenizer, text, window=20, stride=7, batch_size=2)
    assert calls[0] == (14, 300, "tokens")
    assert calls[-1] == (300, 300, "tokens")


def test_nothing_else_is_touched(tiny, text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    backbone = tiny.backbone("gpt2")
    before, states = file_bytes(backbone), random_states()
    capfd.readouterr()
    lowbit.perplexity(backbone, text)
    assert capfd.readouterr() == ("", "")
    assert random_states() == states
    assert file_bytes(backbone) == before
    assert list(tmp_path.iterdir()) == []


def test_models_without_a_language_model_head_are_refused(tiny, text):
    with pytest.raises(UnsupportedModelError, match="BertModel is no language model"):
        lowbit.perplexity(tiny.backbone("bert"), text)
    with pytest.raises(UnsupportedModelError, match="OPTForSequenceClassification is no language model"):
        lowbit.perplexity(tiny.backbone("opt"), text, adapter=tiny.adapter("opt"))


def test_errors_of_file_and_window(tiny, tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        lowbit.perplexity(tiny.backbone("opt"), tmp_path / "gone.txt")
    with pytest.raises(SchemeError, match="a window of 30 tokens does not fit, the model takes 24"):
        lowbit.perplexity(tiny.backbone("opt"), tmp_path / "gone.txt", window=30)


def test_a_trained_model_on_real_text(opt_mini, data_dir, tmp_path):
    part = tmp_path / "part.txt"
    part.write_text((data_dir / "lm" / "wikitext-2" / "wiki.test.raw").read_text(encoding="utf-8")[:8_000])
    exact = lowbit.perplexity(opt_mini, part, window=128, stride=128)
    slid = lowbit.perplexity(opt_mini, part, window=128, stride=32)
    assert 240 < exact.perplexity < 280
    assert slid.scored == exact.scored == exact.tokens
    assert slid.perplexity < exact.perplexity  # no token is short of context
    scores = []
    for bits in (8, 4, 2):
        lowbit.quantize(opt_mini, f"w{bits}", output=tmp_path / f"w{bits}")
        scores.append(lowbit.perplexity(tmp_path / f"w{bits}", part, window=128, stride=128).perplexity)
    assert scores[0] == pytest.approx(exact.perplexity, rel=0.01)
    assert exact.perplexity < scores[1] < scores[2]
