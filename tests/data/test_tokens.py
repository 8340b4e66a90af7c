import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.data import special_tokens, text, text_size, token_blocks, token_windows
from lowbit.errors import DataError
from tests.models import tiny_tokenizer


def letters(text, **_):
    """A tokenizer with one token a character."""
    return {"input_ids": [ord(letter) for letter in text]}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(text, "_PIECE", 5)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "a.txt"

    def write(content):
        path.write_text(content)
        return path

    return write


@given(
    size=st.integers(1, 40),
    before=st.integers(0, 9),
    scored=st.integers(1, 9),
    after=st.integers(0, 9),
    piece=st.integers(1, 12),
)
def test_every_token_is_scored_once_with_all_its_context(write, size, before, scored, after, piece):
    content = "".join(chr(97 + index % 26) if index % 4 else "\n" for index in range(1, size + 1))
    ids = [ord(letter) for letter in content]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_PIECE", piece)
        windows = list(token_windows(write(content), letters, before=before, scored=scored, after=after))
    assert [i for window in windows for i in window.ids[window.first : window.last]] == ids
    for number, window in enumerate(windows):
        position = number * scored
        assert window.start == max(position - before, 0)
        assert window.start + window.first == position
        assert window.ids == ids[window.start : position + scored + after]


def test_text_size(write, small_pieces):
    size = text_size(write("ein süßes\nWort\n\n"), letters)
    assert (size.tokens, size.words, size.bytes) == (16, 3, 18)


def test_a_text_without_tokens_is_refused(write):
    with pytest.raises(DataError, match=r"a\.txt: the tokenizer finds no token in it"):
        text_size(write("x"), lambda *_, **__: {"input_ids": []})


def test_blocks_are_whole_and_follow_each_other(write, small_pieces):
    blocks = token_blocks(write("abc\ndefg\nhi\nj"), letters, 4)
    assert ["".join(map(chr, block["input_ids"])) for block in blocks] == ["abc\n", "defg", "\nhi\n"]
    for block in blocks:
        assert block["labels"] == block["input_ids"]
        assert block["labels"] is not block["input_ids"]
        assert block["attention_mask"] == [1] * 4


def test_too_little_text_for_a_block_is_refused(write):
    with pytest.raises(DataError, match=r"a\.txt has fewer than 4 tokens; give more text or lower the maximum length"):
        token_blocks(write("abc"), letters, 4)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("bert", ([2], [3])), ("roberta", ([0], [2])), ("t5", ([], [1])), ("opt", ([2], [])), ("gpt2", ([], []))],
)
def test_special_tokens(arch, expected):
    assert special_tokens(tiny_tokenizer(arch)) == expected


def test_special_tokens_are_left_out(write):
    tokenizer = tiny_tokenizer("bert")
    (window,) = token_windows(write("good film\nbad film\n"), tokenizer, before=0, scored=9)
    assert tokenizer.decode(window.ids) == "good film bad film"
