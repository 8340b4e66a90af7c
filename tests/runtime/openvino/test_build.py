import shutil
from pathlib import Path

import pytest
import torch
from transformers import pipeline
from transformers.modeling_outputs import SequenceClassifierOutput

import lowbit
from lowbit.calibration import text_inputs
from lowbit.checkpoint import load_tokenizer
from lowbit.errors import CheckpointError, DataError, OutputExistsError, UnsupportedModelError
from lowbit.nn import QuantLinear
from lowbit.runtime.openvino import load_openvino, prepare_openvino, save_openvino
from lowbit.runtime.openvino.files import INFO_FILE
from lowbit.runtime.openvino.model import compile_graph
from tests.models import edit_json, tiny_batch, tiny_model
from tests.tiny import random_states, texts_of, toy_data

pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'lowbit[openvino]'")
TEXTS = texts_of(toy_data())


@pytest.fixture(scope="module")
def folders(tiny):
    return tiny.backbone("bert"), tiny.adapter("bert")


@pytest.fixture(scope="module")
def original(folders):
    return lowbit.load(*folders)


@pytest.fixture(scope="module")
def prepared(original):
    before = random_states()
    made = prepare_openvino(original, TEXTS)
    assert random_states() == before
    return made


@pytest.fixture(scope="module")
def saved(prepared, tmp_path_factory):
    return save_openvino(prepared, tmp_path_factory.mktemp("openvino") / "saved")


def batches(original, texts=TEXTS):
    return text_inputs(original, load_tokenizer(Path(original.name_or_path)), texts)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_it_computes_what_the_model_does(original, prepared):
    for batch in batches(original):
        assert relative_error(prepared(**batch).logits, original(**batch).logits) < 0.05


def test_class_signature_and_output_are_the_models_own(original, prepared):
    assert isinstance(prepared, type(original))
    assert type(prepared).__name__ == type(original).__name__
    assert prepared.config is original.config
    assert prepared.device == torch.device("cpu")
    output = prepared(**tiny_batch(prepared.config))
    assert type(output) is SequenceClassifierOutput
    assert torch.equal(prepared(**tiny_batch(prepared.config), return_dict=False)[0], output.logits)
    assert prepared.eval() is prepared.to("cpu")


def test_products_are_integer_ones(original, prepared):
    found = [node.get_rt_info() for node in compile_graph(prepared.graph, 1).get_runtime_model().get_ops()]
    precisions = [
        str(info["runtimePrecision"].astype(str))
        for info in found
        if str(info["layerType"].astype(str)) == "FullyConnected"
    ]
    linears = sum(isinstance(module, QuantLinear) for module in original.modules())
    assert sum(precision in ("u8", "i8") for precision in precisions) == linears


@torch.no_grad()
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 24), (3, 5), (0, 5)])
def test_shapes(original, prepared, rows, length):
    ids = torch.randint(4, 18, (rows, length), generator=torch.Generator().manual_seed(rows))
    ids[:, 0] = 2
    found = prepared(input_ids=ids).logits  # without a mask
    assert found.shape == (rows, 2)
    if rows:
        usual = original(**batches(original)[0]).logits.norm(dim=1).mean()
        assert float((found - original(input_ids=ids).logits).norm(dim=1).max()) < usual


def test_outputs_stay_as_they_are(prepared):
    first = prepared(input_ids=torch.tensor([[2, 9, 3]])).logits
    before = first.clone()
    prepared(input_ids=torch.tensor([[2, 30, 3]]))
    assert torch.equal(first, before)


def test_what_the_graph_cannot_do_is_refused(prepared):
    ids = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(UnsupportedModelError, match="labels"):
        prepared(input_ids=ids, labels=torch.tensor([0]))
    with pytest.raises(UnsupportedModelError, match="output_attentions"):
        prepared(input_ids=ids, output_attentions=True)
    with pytest.raises(DataError, match="length of at least 1"):
        prepared(input_ids=ids[:, :0])
    with pytest.raises(DataError, match="attention_mask is"):
        prepared(input_ids=ids, attention_mask=ids[:, :2])
    with pytest.raises(UnsupportedModelError, match="trained"):
        prepared.train()
    with pytest.raises(UnsupportedModelError, match="save_openvino"):
        prepared.save_pretrained("nowhere")


def test_in_a_pipeline(original, prepared, folders):
    results = [
        pipeline("text-classification", model=model, tokenizer=load_tokenizer(folders[0]), device="cpu")(TEXTS[:3])
        for model in (original, prepared)
    ]
    for one, other in zip(*results, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=0.02)


def test_saved_and_loaded(prepared, saved):
    loaded = load_openvino(saved)
    assert type(loaded).__name__ == type(prepared).__name__
    assert loaded.config.id2label == prepared.config.id2label
    assert loaded.signature == prepared.signature
    batch = tiny_batch(loaded.config)
    assert torch.equal(loaded(**batch).logits, prepared(**batch).logits)
    assert load_tokenizer(saved).get_vocab()
    with pytest.raises(OutputExistsError):
        save_openvino(prepared, saved)


def test_damaged_files_are_refused(saved, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    bin_file = broken / "openvino_model.bin"
    content = bytearray(bin_file.read_bytes())
    content[len(content) // 2] ^= 1
    bin_file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"openvino_model.bin .*checksum"):
        load_openvino(broken)
    edit_json(broken / INFO_FILE, lambda info: info.update(version=99))
    with pytest.raises(CheckpointError, match="format version 99"):
        load_openvino(broken)
    (broken / INFO_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        load_openvino(broken)
    (broken / INFO_FILE).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_openvino(broken)


def test_what_another_machine_may_overflow_is_refused(saved, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(saved, moved)
    edit_json(moved / INFO_FILE, lambda info: info["signature"].update(spares=False))
    monkeypatch.setattr("lowbit.runtime.openvino.files.saturates", lambda: True)
    with pytest.raises(CheckpointError, match="VNNI"):
        load_openvino(moved)


# ALBERT's one range for both calls of its layer is coarse for the first: its random weights shrink the embeddings.
@pytest.mark.parametrize(("arch", "name", "limit"), [("bert", "BertModel", 0.05), ("albert", "AlbertModel", 0.4)])
def test_a_model_in_memory_is_calibrated_on_random_ids(arch, name, limit):
    model = tiny_model(arch, name)
    lowbit.quantize(model, "w4o2")
    batch = tiny_batch(model.config)
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        found, expected = prepare_openvino(model)(**batch), model(**batch)
    assert type(found) is type(expected)
    assert relative_error(found.last_hidden_state[kept], expected.last_hidden_state[kept]) < limit
    assert found.pooler_output.shape == expected.pooler_output.shape


@torch.no_grad()
def test_a_decoder_that_classifies():
    model = tiny_model("opt", "OPTForSequenceClassification")
    lowbit.quantize(model, "w4o2")
    batch = tiny_batch(model.config)
    assert relative_error(prepare_openvino(model, [batch])(**batch).logits, model(**batch).logits) < 0.3


@pytest.mark.parametrize(
    ("arch", "name"),
    [("opt", "OPTForCausalLM"), ("t5", "T5ForConditionalGeneration"), ("t5", "T5ForSequenceClassification")],
)
def test_models_with_a_decoder_cache_are_refused(arch, name):
    model = tiny_model(arch, name)
    with pytest.raises(UnsupportedModelError, match=rf"{name}.*backend `torch`"):
        prepare_openvino(model)


def test_calibration_needs_rows_of_one_kind(original):
    with pytest.raises(DataError, match="calibration is empty"):
        prepare_openvino(original, [])
    with pytest.raises(DataError, match="one kind"):
        prepare_openvino(original, ["a text", {"input_ids": [[1]]}])


def test_static_activations_are_refused(tiny):
    with pytest.raises(UnsupportedModelError, match=r'stored step \(a8s\).*mode="memory"'):
        prepare_openvino(lowbit.load(tiny.backbone("bert", recipe="w4a8s")))
