import shutil

import pytest
import torch
import transformers

import lowbit
from lowbit.adapter import load_classifier, read_adapter, write_adapter
from lowbit.errors import AdapterError, CheckpointError, UnsupportedModelError
from lowbit.nn import QuantModule
from tests.models import edit_json, output, tiny_tokenizer
from tests.tiny import BACKBONES, options, random_states, toy_data


@pytest.fixture
def copy(tmp_path):
    """Calls with a directory; gives a copy that may be damaged."""

    def make(folder):
        return shutil.copytree(folder, tmp_path / "copy")

    return make


@pytest.mark.parametrize("arch", BACKBONES)
def test_the_adapter_decides_class_and_labels(tiny, arch):
    model = lowbit.load(tiny.backbone(arch), tiny.adapter(arch))
    stem = BACKBONES[arch].split("For")[0].removesuffix("Model").removesuffix("LMHead")
    assert type(model).__name__ == f"{stem}ForSequenceClassification"
    assert (model.config.num_labels, model.config.id2label) == (2, {0: "no", 1: "yes"})
    assert model.config.label2id == {"no": 0, "yes": 1}
    assert model.config.problem_type == "single_label_classification"
    assert not model.training
    assert model.config.pad_token_id == {"bert": 0, "t5": 0, "gpt2": 2}.get(arch, 1)


@pytest.mark.parametrize("arch", BACKBONES)
def test_without_an_adapter_the_directory_decides(tiny, arch):
    for folder, name in (
        (tiny.model(arch), BACKBONES[arch]),
        (tiny.backbone(arch), BACKBONES[arch]),
        (tiny.merged(arch), type(lowbit.load(tiny.backbone(arch), tiny.adapter(arch))).__name__),
    ):
        model = lowbit.load(str(folder))
        assert type(model).__name__ == name
        assert not model.training
        assert any(isinstance(module, QuantModule) for module in model.modules()) == (folder != tiny.model(arch))


def test_an_encoder_alone(tiny):
    backbone = tiny.backbone("t5", "T5EncoderModel")
    model = lowbit.load(backbone)
    assert type(model).__name__ == "T5EncoderModel"
    expected = transformers.T5EncoderModel.from_pretrained(tiny.model("t5", "T5EncoderModel"))
    lowbit.quantize(expected, "w4o2")
    assert torch.equal(output(model), output(expected))


def test_an_encoder_alone_is_no_classifier(tiny):
    for folder in (tiny.backbone("t5", "T5EncoderModel"), tiny.model("t5", "T5EncoderModel")):
        with pytest.raises(CheckpointError, match=r"lacks 'transformer.decoder\S+ of a T5ForSequenceClassification"):
            load_classifier(folder, ("no", "yes"), seed=0)


def test_the_fresh_head_depends_on_the_seed_only(tiny):
    heads = []
    for seed in (1, 1, 2):
        model, fresh = load_classifier(tiny.backbone("bert"), ("no", "yes"), seed=seed)
        assert fresh == {"classifier.weight", "classifier.bias"}
        heads.append(model.classifier.weight.detach())
        torch.rand(5)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_backbone_without_pooler_gets_a_fresh_one(tiny):
    _, fresh = load_classifier(tiny.backbone("bert", "BertForMaskedLM"), ("no", "yes"), seed=0)
    assert fresh == {f"{name}.{part}" for name in ("classifier", "bert.pooler.dense") for part in ("weight", "bias")}


def test_regression_has_one_output(tiny):
    model, _ = load_classifier(tiny.model("bert"), None, seed=0)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


def test_a_head_with_other_labels_is_refused(tiny):
    backbone = tiny.backbone("bert", "BertForSequenceClassification")
    load_classifier(backbone, ("a", "b"), seed=0)
    message = r"'classifier\..*' is \[2.*\[3.*; start from the model without a task head"
    with pytest.raises(CheckpointError, match=message):
        load_classifier(backbone, ("a", "b", "c"), seed=0)


def test_the_dtype_is_the_checkpoints_unless_asked_for(tiny):
    backbone = tiny.backbone("bert", dtype=torch.bfloat16)
    assert load_classifier(backbone, None, seed=0)[0].classifier.weight.dtype == torch.bfloat16
    model, _ = load_classifier(backbone, None, seed=0, dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    linear = model.bert.encoder.layer[0].output.dense
    assert (linear.outlier_value.dtype, linear.scale.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("adapter", [False, True])
def test_random_states_are_left_alone(tiny, adapter):
    folders = tiny.backbone("bert"), tiny.adapter("bert") if adapter else None
    before = random_states()
    lowbit.load(*folders)
    assert random_states() == before


def test_transformers_output_is_held_back(tiny, capfd):
    lowbit.load(tiny.backbone("roberta"), tiny.adapter("roberta"))
    assert capfd.readouterr() == ("", "")


def test_an_adapter_on_another_backbone_is_refused(tiny):
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        lowbit.load(tiny.backbone("bert", seed=1), tiny.adapter("bert"))
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        lowbit.load(tiny.backbone("roberta"), tiny.adapter("bert"))


def test_an_adapter_needs_a_backbone(tiny):
    with pytest.raises(AdapterError, match="has no quantized modules"):
        lowbit.load(tiny.model("bert"), tiny.adapter("bert"))
    with pytest.raises(AdapterError, match="is not a task adapter"):
        lowbit.load(tiny.backbone("bert"), tiny.backbone("bert"))


def test_an_adapter_without_its_head_is_refused(tiny, tmp_path):
    info, tensors = read_adapter(tiny.adapter("bert"))
    kept = {name: tensor for name, tensor in tensors.items() if name != "classifier.bias"}
    with pytest.raises(CheckpointError, match=r"neither backbone nor adapter holds \['classifier.bias'\]; tune again"):
        lowbit.load(tiny.backbone("bert"), write_adapter(tmp_path / "half", info, kept))


def test_a_damaged_backbone_is_refused(tiny, copy):
    folder = copy(tiny.backbone("bert"))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    for adapter in (None, tiny.adapter("bert")):
        with pytest.raises(CheckpointError, match=r"model.safetensors: tensor '\S+' does not match its checksum"):
            lowbit.load(folder, adapter)


@pytest.mark.parametrize("kind", ["model", "backbone"])
@pytest.mark.parametrize("classify", [False, True])
def test_missing_or_truncated_weights_are_refused(tiny, copy, kind, classify):
    folder = copy(getattr(tiny, kind)("bert"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    for _ in range(2):
        with pytest.raises(CheckpointError, match=str(folder)):
            load_classifier(folder, None, seed=0) if classify else lowbit.load(folder)
        weights.unlink(missing_ok=True)


@pytest.mark.parametrize("strategy", ["mse", "gptq"])
def test_a_base_model_saved_without_its_pooler(tiny, strategy, tmp_path):
    """As below a classifier that has none; the task's own pooler comes from its adapter."""
    folder = tmp_path / "float"
    transformers.BertModel.from_pretrained(tiny.model("bert"), add_pooling_layer=False).save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    before = random_states()
    backbone = tmp_path / "backbone"
    lowbit.quantize(folder, lowbit.Recipe(scheme=lowbit.Scheme(strategy=strategy)), output=backbone)
    assert lowbit.load(backbone).pooler is None
    assert random_states() == before
    adapter = lowbit.tune(backbone, tmp_path / "adapter", toy_data(), options=options()).path
    loaded = lowbit.load(backbone, adapter=adapter)
    found = read_adapter(adapter)[1]["pooler.dense.weight"]
    assert torch.equal(loaded.bert.pooler.dense.weight, found)
    merged = lowbit.load(lowbit.merge(backbone, adapter, tmp_path / "merged"))
    assert torch.equal(output(merged), output(loaded))


def test_an_incomplete_checkpoint_is_refused(tiny, copy):
    folder = copy(tiny.model("bert"))
    edit_json(folder / "config.json", lambda values: values.update(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match=r"lacks \['encoder.layer.2.\S+.*; the checkpoint is incomplete"):
        lowbit.load(folder)
    with pytest.raises(CheckpointError, match=r"lacks 'bert.encoder.layer.2.\S+ of a BertForSequenceClassification"):
        load_classifier(folder, None, seed=0)


@pytest.mark.parametrize("classify", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "nope"}, UnsupportedModelError, "no model type 'nope'"),
        ({"hidden_size": "wide"}, CheckpointError, "config.json is damaged"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(tiny, copy, classify, change, error, message):
    folder = copy(tiny.model("bert"))
    edit_json(folder / "config.json", lambda values: values.update(change))
    with pytest.raises(error, match=message):
        load_classifier(folder, None, seed=0) if classify else lowbit.load(folder)


@pytest.mark.parametrize("names", [["NoSuchModel"], ["GPT2Model"], ["BertConfig"]])
def test_an_unknown_model_class_is_refused(tiny, copy, names):
    folder = copy(tiny.model("bert"))
    edit_json(folder / "config.json", lambda values: values.update(architectures=names))
    with pytest.raises(UnsupportedModelError, match=f"names no bert model class: .*{names[0]}"):
        lowbit.load(folder)


@pytest.mark.parametrize("names", [[], None])
def test_no_model_class_means_the_base_model(tiny, copy, names):
    folder = copy(tiny.model("bert"))
    edit_json(folder / "config.json", lambda values: values.update(architectures=names))
    assert type(lowbit.load(folder)).__name__ == "BertModel"


def test_what_is_no_model_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a model folder"):
        lowbit.load(tmp_path)
    with pytest.raises(CheckpointError, match="is not a model folder"):
        lowbit.load(tmp_path / "absent")
