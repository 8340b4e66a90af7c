"""Size on disk of a quantized BERT-base, beside its fp32 file; appends to benchmarks/results/size.jsonl."""

import tempfile
from pathlib import Path

from geometry import bert_base
from rows import RESULTS, append

import lowbit
from lowbit.recipe import Recipe, embedding_scheme


def main() -> None:
    """Measure w4, w3 and w2 with 8-bit embeddings, and w4 with 4-bit ones."""
    with tempfile.TemporaryDirectory() as temporary:
        source = bert_base(Path(temporary) / "float")
        whole = (source / "model.safetensors").stat().st_size
        for scheme, embeddings in (("w8", 8), ("w4", 8), ("w4", 4), ("w3", 8), ("w2", 8)):
            recipe = Recipe(scheme=lowbit.Scheme.parse(scheme), embeddings=embedding_scheme(embeddings))
            size = lowbit.quantize(source, recipe, output=Path(temporary) / f"{scheme}-{embeddings}").size
            row = {
                "geometry": "BERT-base",
                "scheme": scheme,
                "embeddings": f"{embeddings} bit",
                "effective_bits": round(size.effective_bits, 4),
                "model_bits": round(size.model_bits, 4),
                "file_bytes": size.file_bytes,
                "fp32_bytes": whole,
                "ratio": round(size.file_bytes / whole, 4),
            }
            append(RESULTS / "size.jsonl", row)


if __name__ == "__main__":
    main()
