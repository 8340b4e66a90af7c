"""Write real text for ``lowbit bench speed --text``: SST-2 dev and lines of Wikipedia, in their true lengths, shuffled.

python benchmarks/real_text.py texts.txt && lowbit bench speed MODEL --text texts.txt
"""

import argparse
import os
import random
from pathlib import Path

from lowbit.data import glue_data, read_text

WIKITEXT = "lm/wikitext-2/wiki.test.raw"
SENTENCES, PARAGRAPHS = 384, 128


def main() -> None:
    """Draw sentences and paragraphs and mix them, the same each time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LOWBIT_DATA"))
    arguments = parser.parse_args()
    dev = glue_data("sst2", arguments.data_dir).evaluations["dev"].texts
    lines = read_text(Path(arguments.data_dir) / WIKITEXT).splitlines()
    paragraphs = [line.strip() for line in lines if line.strip() and not line.strip().startswith("=")]
    draw = random.Random(0)
    texts = draw.sample(dev, SENTENCES) + draw.sample(paragraphs, PARAGRAPHS)
    draw.shuffle(texts)
    arguments.output.write_text("".join(f"{text.strip()}\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    main()
