import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lowbit.checkpoint import (
    TensorEntry,
    TensorWriter,
    check_bytes,
    manifest_metadata,
    read_manifest,
    tensor_entry,
)
from lowbit.checkpoint.tensorfile import MANIFEST_KEY, raw_bytes
from lowbit.errors import CheckpointError

TENSORS = {
    "b.scale": torch.tensor([[1.5], [2.5]]),
    "b.weight": torch.arange(7, dtype=torch.uint8),
    "a.col": torch.tensor([3, 65535], dtype=torch.uint16),
    "a.half": torch.tensor([0.25], dtype=torch.float16),
}


def write(path, tensors):
    entries = {name: TensorEntry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with TensorWriter(path, entries) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return path


def check(path):
    """Everything that is checked before a weight is used."""
    entries = read_manifest(path)
    check_bytes(path, entries)
    return entries


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "model.safetensors", TENSORS)


def test_safetensors_reads_the_file(file):
    loaded = load_file(file)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_data_is_aligned_and_without_holes(file):
    header, body = header_of(file)
    header.pop("__metadata__")
    start = file.stat().st_size - len(body)
    assert start % 8 == 0
    position = 0
    for name, item in header.items():
        begin, end = item["data_offsets"]
        assert begin == position
        assert begin % TENSORS[name].element_size() == 0
        position = end
    assert position == len(body)


def test_the_order_of_writing_does_not_matter(tmp_path, file):
    backwards = write(tmp_path / "other.safetensors", dict(reversed(TENSORS.items())))
    assert backwards.read_bytes() == file.read_bytes()


def test_manifest_holds_dtype_shape_and_checksum(file):
    entries = check(file)
    assert entries == {name: tensor_entry(tensor) for name, tensor in TENSORS.items()}
    assert entries["a.half"].sha256 == hashlib.sha256(bytes.fromhex("0034")).hexdigest()


def test_manifest_metadata_makes_other_writers_files_readable(tmp_path):
    path = tmp_path / "model.safetensors"
    entries = {name: tensor_entry(tensor) for name, tensor in TENSORS.items()}
    save_file(TENSORS, path, metadata=manifest_metadata(entries))
    assert check(path) == entries


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=4,
    )
)
@settings(max_examples=30, deadline=None)
def test_any_names_dtypes_and_shapes(tmp_path_factory, specs):
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in specs.items()}
    path = write(tmp_path_factory.mktemp("any") / "x.safetensors", tensors)
    assert check(path).keys() == tensors.keys()
    with safe_open(path, framework="pt") as opened:
        for name, tensor in tensors.items():
            assert torch.equal(opened.get_tensor(name), tensor)


def test_raw_bytes_are_row_major():
    transposed = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).t()
    assert bytes(raw_bytes(transposed)) == bytes([1, 3, 2, 4])
    assert bytes(raw_bytes(torch.empty(0))) == b""


def test_each_flipped_data_byte_names_its_tensor(file):
    header, body = header_of(file)
    good = file.read_bytes()
    start = len(good) - len(body)
    header.pop("__metadata__")
    for position in range(len(body)):
        owner = next(n for n, item in header.items() if position in range(*item["data_offsets"]))
        broken = bytearray(good)
        broken[start + position] ^= 16
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors.*'{owner}' does not match its checksum"):
            check(file)


@pytest.mark.parametrize("flip", [1, 2, 4, 16, 64, 128])
def test_each_flipped_header_byte_is_found_or_harmless(tmp_path, flip):
    file = write(tmp_path / "x.safetensors", {"w": torch.ones(3), "s": torch.zeros(1, dtype=torch.uint8)})
    good = file.read_bytes()
    entries = check(file)
    harmless = 0
    for position in range(8 + int.from_bytes(good[:8], "little")):
        broken = bytearray(good)
        broken[position] ^= flip
        file.write_bytes(broken)
        try:
            found = check(file)
        except CheckpointError as error:
            assert "x.safetensors" in str(error)  # noqa: PT017
            continue
        assert found == entries
        harmless += 1
    assert harmless <= len('"format":"pt"') + 8  # what is not lowbit's own


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -8, -1])
def test_truncated(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*(truncated|damaged|expected)"):
        check(file)


def test_appended_bytes(file):
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="expected; fetch the file again"):
        read_manifest(file)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: the file does not exist"):
        read_manifest(tmp_path / "nowhere.safetensors")


def test_a_tensor_that_is_missing_from_the_file(file):
    header, body = header_of(file)
    name = list(header)[-1]
    begin, end = header.pop(name)["data_offsets"]
    rewrite(file, header, body[:begin] + body[end:])
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        read_manifest(file)


def test_a_tensor_that_is_not_in_the_manifest(file):
    header, body = header_of(file)
    header["extra"] = {"dtype": "U8", "shape": [1], "data_offsets": [len(body), len(body) + 1]}
    rewrite(file, header, body + b"x")
    with pytest.raises(CheckpointError, match="'extra' is not in the manifest"):
        read_manifest(file)


@pytest.mark.parametrize(("key", "value"), [("dtype", "I8"), ("shape", [1, 7])])
def test_wrong_dtype_or_shape(file, key, value):
    header, body = header_of(file)
    header["b.weight"][key] = value
    rewrite(file, header, body)
    with pytest.raises(CheckpointError, match=r"'b\.weight' is .*the manifest says U8 \[7\]"):
        read_manifest(file)


def test_swapped_data_offsets(file):
    header, body = header_of(file)
    header["a.half"]["data_offsets"] = [0, 2]
    rewrite(file, header, body)
    with pytest.raises(CheckpointError, match=r"'a\.half' does not match"):
        check(file)


@pytest.mark.parametrize("text", ["[]", "7", '{"w":7}', '{"w":{"dtype":"U8"}}', '{"__metadata__":7}', "\xff", ""])
def test_headers_that_are_no_safetensors(file, text):
    data = text.encode("latin-1")
    file.write_bytes(len(data).to_bytes(8, "little") + data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_manifest(file)


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", '{"version":1}', '{"version":1,"tensors":[]}', '{"version":1,"tensors":{"a":[1,2,3]}}', '{"version":2}'],
)
def test_damaged_manifest(file, manifest):
    header, body = header_of(file)
    header["__metadata__"][MANIFEST_KEY] = manifest
    rewrite(file, header, body)
    with pytest.raises(CheckpointError, match="manifest"):
        read_manifest(file)


def test_file_of_another_writer(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not written by lowbit"):
        read_manifest(path)


def test_shards_are_checked_together(tmp_path):
    metadata = manifest_metadata({name: tensor_entry(tensor) for name, tensor in TENSORS.items()})
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({name: TENSORS[name] for name in ("b.scale", "a.col")}, first, metadata=metadata)
    save_file({name: TENSORS[name] for name in ("b.weight", "a.half")}, second, metadata=metadata)
    entries = read_manifest(first, second)
    assert entries.keys() == TENSORS.keys()
    check_bytes(first, entries)
    check_bytes(second, entries)
    with pytest.raises(CheckpointError, match="is missing"):
        read_manifest(first)
    other = write(tmp_path / "3.safetensors", {"b.weight": TENSORS["b.weight"]})
    with pytest.raises(CheckpointError, match=r"3\.safetensors: not a part of the same model"):
        read_manifest(first, other)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([torch.ones(3)], r"'a' is F32 \[3\], planned F32 \[2\]"),
        ([torch.ones(2).half()], r"'a' is F16 \[2\], planned F32 \[2\]"),
        ([torch.ones(2)], r"never written: \['b'\]"),
        ([torch.ones(2), torch.ones(2)], "'a'"),
    ],
    ids=["shape", "dtype", "too few", "twice"],
)
def test_writer_refuses_what_was_not_planned(tmp_path, written, message):
    def fail():
        entries = {"a": TensorEntry(torch.float32, (2,)), "b": TensorEntry(torch.float32, (1,))}
        with TensorWriter(tmp_path / "x", entries) as writer:
            for tensor in written:
                writer.write("a", tensor)

    with pytest.raises(CheckpointError, match=message):
        fail()
