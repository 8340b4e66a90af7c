"""``.bin`` checkpoints, whole and in shards: the same tensors as safetensors, or an error that names the file."""

import json
import pickle
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import lowbit
from lowbit.checkpoint import meta_model, open_source, read_config
from lowbit.checkpoint.weightfile import WeightFile, weight_shards
from lowbit.errors import CheckpointError
from tests.models import file_bytes, same, save_tiny


def to_bin(folder, shards=1, **options):
    """Store the weights of a float checkpoint as ``.bin`` instead, as older releases of transformers did."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return folder
    files = {}
    for index in range(shards):
        names = [*tensors][index::shards]
        file = f"pytorch_model-{index + 1:05}-of-{shards:05}.bin"
        torch.save({name: tensors[name] for name in names}, folder / file, **options)
        files |= dict.fromkeys(names, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def read_all(folder):
    with open_source(folder, meta_model(read_config(folder))) as source:
        return {name: source.tensor(name).clone() for name in source.names}


@pytest.fixture
def bert(tmp_path):
    """A tiny BERT as ``.bin``."""
    return to_bin(save_tiny(tmp_path / "m", "bert", "BertModel"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("arch", "class_name"),
    [("electra", "ElectraForMaskedLM"), ("llama", "LlamaForCausalLM"), ("mpnet", "MPNetForMaskedLM")],
)
def test_the_same_backbone_as_from_safetensors(tmp_path, arch, class_name, shards, dtype):
    recipe = {"scheme": {"bits": 4, "strategy": "minmax"}}
    source = save_tiny(tmp_path / "a" / "m", arch, class_name, dtype=dtype)
    expected = lowbit.quantize(source, recipe, output=tmp_path / "expected")
    found = lowbit.quantize(to_bin(source, shards), recipe, output=tmp_path / "found")
    assert found.plan == expected.plan
    assert file_bytes(found.path) == file_bytes(expected.path)
    if shards == 1 and dtype == torch.bfloat16:
        model = getattr(transformers, class_name).from_pretrained(source)
        assert lowbit.quantize(model, recipe) == expected.plan
        lowbit.save(model, tmp_path / "saved")
        assert file_bytes(tmp_path / "saved") == file_bytes(expected.path)


def test_files_from_before_torch_1_6_are_read_as_a_whole(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    expected = read_all(source)
    to_bin(source, _use_new_zipfile_serialization=False)
    assert (source / "pytorch_model.bin").read_bytes()[:2] != b"PK"
    assert same(read_all(source), expected)


def test_safetensors_come_first(bert, tmp_path):
    other = save_tiny(tmp_path / "other", "bert", "BertModel", seed=1)
    (bert / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert same(read_all(bert), read_all(other))
    assert weight_shards(bert) == {"model.safetensors": None}


def test_parameters_and_other_values(bert):
    file = bert / "pytorch_model.bin"
    expected = read_all(bert)
    values = {name: torch.nn.Parameter(tensor) for name, tensor in torch.load(file).items()}
    torch.save({**values, "epoch": 3}, file)
    assert same(read_all(bert), expected)


def private_kilobytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_tensors_are_mapped_not_read(tmp_path):
    """Private memory stays below one tensor's size while all sixteen are looked at."""
    size = 2**20  # four megabytes each
    torch.save({str(index): torch.full((size,), float(index)) for index in range(16)}, tmp_path / "w.bin")
    with ExitStack() as stack:
        before = private_kilobytes()
        file = WeightFile(tmp_path / "w.bin", stack)
        assert [float(file.tensor(key).max()) for key in file.keys()] == [float(index) for index in range(16)]  # noqa: SIM118
        assert private_kilobytes() - before < 4096


class Touch:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_unsafe_pickle_is_refused_and_not_run(bert, tmp_path, zipped):
    values = {"embeddings": torch.ones(2), "extra": Touch(tmp_path / "touched")}
    torch.save(values, bert / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .* holds objects besides tensors.*as safetensors$"):
        read_all(bert)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -100])
def test_a_truncated_file(tmp_path, keep, zipped):
    source = to_bin(save_tiny(tmp_path / "m", "bert", "BertModel"), _use_new_zipfile_serialization=zipped)
    file = source / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    for read in (read_all, lowbit.load):
        with pytest.raises(CheckpointError, match=r"m/pytorch_model\.bin .*(fetch the file again|as safetensors)"):
            read(source)


def test_what_is_no_state_dict(bert):
    torch.save(torch.ones(3), bert / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds a Tensor, no state dict"):
        read_all(bert)
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps({}, protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_all(bert)


def test_a_missing_shard_and_a_wrong_index(tmp_path):
    source = to_bin(save_tiny(tmp_path / "m", "bert", "BertModel"), shards=3)
    index = source / "pytorch_model.bin.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    name, file = next(iter(weight_map.items()))
    index.write_text(json.dumps({"weight_map": weight_map | {name: "pytorch_model-00002-of-00003.bin"}}))
    with pytest.raises(CheckpointError, match=f"00002-of-00003.bin lacks tensor '{name}' that the index lists"):
        read_all(source)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (source / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
        read_all(source)
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\.index\.json is damaged"):
        read_all(source)


@pytest.mark.parametrize("change", ["shape", "missing"])
def test_tensors_that_do_not_fit(bert, change):
    file, name = bert / "pytorch_model.bin", "encoder.layer.1.output.dense.bias"
    tensors = torch.load(file)
    tensors[name] = tensors[name][:-1]
    if change == "missing":
        del tensors[name]
    torch.save(tensors, file)
    with pytest.raises(CheckpointError, match=f"{name}'"):
        read_all(bert)
