import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import lowbit
from lowbit.checkpoint import manifest_metadata, read_manifest, tensor_entry, verify_backbone
from lowbit.errors import CheckpointError
from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
from tests.models import edit_json, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    save_tiny(folder / "m", "bert", "BertForMaskedLM")
    quantize_checkpoint(folder / "m", Recipe.parse("w4"), folder / "q")
    return {path.name: path.read_bytes() for path in (folder / "q").iterdir()}


@pytest.fixture
def backbone(tmp_path, pristine):
    for name, data in pristine.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def rewrite(folder, change):
    """Change the tensors and write them with a manifest that fits them: only ``config.json`` can tell."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    entries = {name: tensor_entry(tensor) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata=manifest_metadata(entries))


def test_a_whole_backbone(backbone):
    found = verify_backbone(backbone)
    assert found.path == backbone
    assert found.quantized_modules == 1 + 2 * 6
    assert found.tensors == len(read_manifest(backbone / "model.safetensors"))
    assert found.bytes == (backbone / "model.safetensors").stat().st_size
    assert verify_backbone(str(backbone)) == found


def test_every_region_of_the_file_is_checked(backbone):
    file = backbone / "model.safetensors"
    good = file.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for position in range(start, len(good), 977):
        broken = bytearray(good)
        broken[position] ^= 1
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.+' does not match its checksum"):
            verify_backbone(backbone)


def test_truncated(backbone):
    file = backbone / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: \d+ bytes found, \d+ expected"):
        verify_backbone(backbone)


@pytest.mark.parametrize("part", ["weight", "scale", "outlier_ptr", "outlier_col", "outlier_value"])
def test_a_payload_tensor_that_is_missing(backbone, part):
    name = f"bert.encoder.layer.1.output.dense.{part}"
    rewrite(backbone, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' of a quantized module is missing"):
        verify_backbone(backbone)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weight", lambda t: t[:-1]),
        ("weight", lambda t: t.to(torch.int8)),
        ("scale", lambda t: t.view(-1)),
        ("scale", lambda t: t.half()),
        ("outlier_col", lambda t: t[:-1]),
        ("outlier_ptr", lambda t: t.long()),
    ],
)
def test_a_payload_tensor_of_wrong_dtype_or_shape(backbone, part, change):
    name = f"bert.encoder.layer.0.output.dense.{part}"
    rewrite(backbone, lambda tensors: tensors.update({name: change(tensors[name]).clone()}))
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' is .*config\.json asks for"):
        verify_backbone(backbone)


def test_another_scheme_in_the_config(backbone):
    edit_json(
        backbone / "config.json", lambda c: [g["scheme"].update(bits=3) for g in c["quantization_config"]["groups"]]
    )
    with pytest.raises(CheckpointError, match=r"config\.json asks for"):
        verify_backbone(backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("quantization_config"), "not a lowbit backbone"),
        (lambda c: c["quantization_config"].update(quant_method="gptq"), "not a lowbit backbone"),
        (lambda c: c["quantization_config"].update(groups=[]), "no quantized module"),
        (lambda c: c["quantization_config"].update(version=0), "format version 0"),
        (lambda c: c["quantization_config"].pop("groups"), "damaged"),
    ],
)
def test_damaged_config(backbone, change, message):
    edit_json(backbone / "config.json", change)
    with pytest.raises(CheckpointError, match=message):
        verify_backbone(backbone)


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_config_that_is_no_json_object(backbone, text):
    (backbone / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json|not a lowbit backbone"):
        verify_backbone(backbone)


def test_missing_files(backbone):
    (backbone / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file does not exist"):
        verify_backbone(backbone)
    (backbone / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        verify_backbone(backbone)


def test_a_float_checkpoint_is_no_backbone(tmp_path):
    with pytest.raises(CheckpointError, match="make one with `lowbit quantize"):
        verify_backbone(save_tiny(tmp_path / "m", "bert", "BertModel"))


def test_the_fingerprint_is_that_of_the_quantized_tensors(backbone, tmp_path):
    """The same for every task class, another one for other codes."""
    first = verify_backbone(backbone).fingerprint
    model = transformers.AutoModelForSequenceClassification.from_pretrained(backbone)
    lowbit.hf.save(model, tmp_path / "classifier")
    assert verify_backbone(tmp_path / "classifier").fingerprint == first
    rewrite(backbone, lambda tensors: tensors["cls.predictions.bias"].add_(1))
    assert verify_backbone(backbone).fingerprint == first
    rewrite(backbone, lambda tensors: tensors["bert.encoder.layer.0.output.dense.bias"].add_(1))
    assert verify_backbone(backbone).fingerprint == first
    rewrite(backbone, lambda tensors: tensors["bert.encoder.layer.0.output.dense.weight"][:1].bitwise_xor_(1))
    assert verify_backbone(backbone).fingerprint != first


def test_shards_of_a_saved_model(backbone, tmp_path):
    model = transformers.AutoModelForMaskedLM.from_pretrained(backbone)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert verify_backbone(tmp_path / "shards").fingerprint == verify_backbone(backbone).fingerprint
    next((tmp_path / "shards").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        verify_backbone(tmp_path / "shards")


def test_plan_json_is_for_people_only(backbone):
    values = json.loads((backbone / "plan.json").read_text())
    assert len(values["modules"]) > 10
    (backbone / "plan.json").unlink()
    verify_backbone(backbone)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    save_tiny(folder / "m", "bert", "BertModel")
    tiny_tokenizer("bert").save_pretrained(folder / "m")
    quantize_checkpoint(folder / "m", Recipe.parse("w4a8s"), folder / "q")
    return folder / "q"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (None, "of a quantized module is missing"),
        (torch.tensor([0.0]), "is 0, no step size; quantize the model again"),
        (torch.tensor([-0.5]), "is -0.5, no step size"),
        (torch.tensor([torch.nan]), "is nan, no step size"),
        (torch.tensor([torch.inf]), "is inf, no step size"),
        (torch.tensor(0.5), r"is .*config\.json asks for"),
    ],
)
@pytest.mark.parametrize(
    "read", [verify_backbone, AutoModel.from_pretrained, lowbit.inspect], ids=["verify", "load", "inspect"]
)
def test_a_static_step_that_is_none(static, tmp_path, step, message, read):
    folder = shutil.copytree(static, tmp_path / "damaged")
    name = "encoder.layer.1.output.dense.input_scale"
    rewrite(folder, lambda tensors: tensors.pop(name) if step is None else tensors.update({name: step}))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' {message}"):
        read(folder)
