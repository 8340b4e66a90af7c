import pytest

from lowbit.data import read_text, text
from lowbit.errors import DataError


def test_reads_the_text_as_it_is_stored(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffnaïve\r\nsecond\n".encode())
    assert read_text(path) == "naïve\r\nsecond\n"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read \(No such file"):
        read_text(tmp_path / "gone.txt")


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.txt: the file is empty"):
        read_text(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bad_utf8_is_named_by_line(tmp_path, mark):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + b"one\ntwo\n\xff\n")
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8"):
        read_text(path)


def test_a_later_piece_is_read_as_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_PIECE", 4)
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n\ufeffdrei\n  ü".encode())
    assert list(text.text_pieces(path)) == ["one\r\n", "\n\ufeffdrei\n", "  ü"]
    assert read_text(path) == "one\r\n\n\ufeffdrei\n  ü"
    path.write_bytes(b"one\n\n\ntwo\n\xff\n")
    with pytest.raises(DataError, match=r"a\.txt:5: not UTF-8"):
        read_text(path)


def test_real_text(data_dir):
    path = data_dir / "lm" / "wikitext-2" / "wiki.test.raw"
    assert len(read_text(path).encode()) == 1_290_590
