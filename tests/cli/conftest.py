"""A tiny model with its tokenizer, and the command in this process."""

import pytest
from transformers import BertTokenizerFast
from typer.testing import CliRunner

from lowbit.cli import app
from tests.models import VOCABULARY, save_tiny

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """The folder of a float BERT with three layers and a tokenizer."""
    folder = save_tiny(tmp_path_factory.mktemp("cli") / "bert", "bert", "BertModel", num_hidden_layers=3)
    words = _WORDS + [f"[unused{index}]" for index in range(VOCABULARY - len(_WORDS))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def run():
    """Run the command; the result has ``exit_code``, ``stdout`` and ``stderr``. Unexpected exceptions are raised."""

    def invoke(*arguments, **options):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def reviews(tmp_path):
    """A labelled CSV file."""
    path = tmp_path / "reviews.csv"
    path.write_text("t,l\n" + "a good film,yes\na bad film,no\n" * 8)
    return path
