"""Rewrite the benchmark tables of README.md and docs/*.md from the rows in benchmarks/results/*.jsonl.

A table lives between two marker lines, ``<!-- table:NAME -->`` and ``<!-- /table -->``; what stands between
them is generated. ``--check`` writes nothing, prints a unified diff and exits with 1 where a file differs.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import quality_tables  # noqa: F401  # registers its tables, as do the others
import runtime_tables  # noqa: F401
import sam_sga_tables  # noqa: F401
import speed_tables  # noqa: F401
import tuning_tables  # noqa: F401
import untuned_tables  # noqa: F401
import zeroshot_tables  # noqa: F401
from markup import TABLES, markdown, mebibytes, newest, show, table
from rows import Row, RowError, read_rows

ROOT = Path(__file__).resolve().parent.parent
REGION = re.compile(r"^<!-- table:(?P<name>\w+) -->\n.*?^<!-- /table -->$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^<!-- (?:table:\w+|/table) -->$", re.MULTILINE)


@table("perplexity")
def perplexity(results: Path) -> str:
    """One line per model, text, window and scheme: perplexity per token as quantized, and tuned on other text."""
    headings = ["Model", "Text", "Scheme", "Window", "Stride", "Effective bits", "Model bits", "Untuned", "Tuned"]
    line_of = ("model", "text", "window", "stride", "scheme")
    lines: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in newest(read_rows(results / "perplexity.jsonl"), *line_of, "method"):
        lines.setdefault(tuple(row[name] for name in line_of), {})[row["method"]] = row
    cells = []
    for line in sorted(lines):
        methods = lines[line]
        row = next(iter(methods.values()))
        cells.append(
            [
                *(show(row, name) for name in ("model", "text", "scheme", "window", "stride")),
                show(row, "effective_bits", "{:.3f}"),
                show(row, "model_bits", "{:.3f}"),
                *(show(methods.get(method, {}), "perplexity", "{:.1f}") for method in ("untuned", "outliers")),
            ]
        )
    return markdown(headings, cells, text_columns=3)


@table("size")
def size(results: Path) -> str:
    """One line per geometry, scheme and embedding width: bits, bytes and what is left of the fp32 file."""
    headings = [
        "Geometry",
        "Scheme",
        "Embeddings",
        "Effective bits",
        "Model bits",
        "File",
        "fp32",
        "File / fp32",
    ]
    lines = [
        [
            show(row, "geometry"),
            show(row, "scheme"),
            show(row, "embeddings"),
            show(row, "effective_bits", "{:.3f}"),
            show(row, "model_bits", "{:.3f}"),
            mebibytes(row, "file_bytes"),
            mebibytes(row, "fp32_bytes"),
            show(row, "ratio", "{:.4f}"),
        ]
        for row in newest(read_rows(results / "size.jsonl"), "geometry", "scheme", "embeddings")
    ]
    return markdown(headings, lines, text_columns=3)


@table("stage1")
def stage1(results: Path) -> str:
    """One line per quantization run: time beside a plain copy, memory beside the largest tensor."""
    headings = ["Geometry", "Strategy", "Scheme", "Time", "Plain copy", "Time / copy"]
    headings += ["Peak private memory", "Largest tensor", "Peak / largest", "Threads", "Processor"]
    key = ("geometry", "strategy", "scheme", "threads", "cpu")
    lines = [
        [
            show(row, "geometry"),
            show(row, "strategy"),
            show(row, "scheme"),
            show(row, "seconds", "{:.2f} s"),
            show(row, "copy_seconds", "{:.2f} s"),
            show(row, "ratio", "{:.2f}×"),
            show(row, "peak_private_mib", "{:.0f} MiB"),
            show(row, "largest_tensor_mib", "{:.0f} MiB"),
            show(row, "memory_ratio", "{:.2f}×"),
            show(row, "threads"),
            show(row, "cpu"),
        ]
        for row in newest(read_rows(results / "stage1_cost.jsonl"), *key)
    ]
    return markdown(headings, lines, text_columns=3)


@table("budgets")
def budgets(results: Path) -> str:
    """One line per recipe, those that are compared together."""
    headings = ["Model", "Compared at", "Recipe", "Effective bits", "Spearman on dev", "Loss", "Distance"]
    lines = [
        [
            show(row, "model"),
            show(row, "budget"),
            show(row, "label"),
            show(row, "effective_bits", "{:.3f}"),
            show(row, "spearman", "{:.4f}"),
            show(row, "loss", "{:+.4f}"),
            show(row, "distance", "{:.4f}"),
        ]
        for row in sorted(newest(read_rows(results / "budgets.jsonl"), "model", "label"), key=lambda row: row["budget"])
    ]
    return markdown(headings, lines, text_columns=3)


def fill(text: str, path: Path, results: Path) -> str:
    """``text`` of the document ``path`` with every marked region generated anew."""
    regions = list(REGION.finditer(text))
    if len(MARKER.findall(text)) != 2 * len(regions):
        raise RowError(f"{path}: every `<!-- table:NAME -->` needs its own `<!-- /table -->` on a later line")
    for region in regions:
        if region["name"] not in TABLES:
            raise RowError(f"{path}: unknown table {region['name']!r}; use one of {', '.join(TABLES)}")

    def generate(region: re.Match[str]) -> str:
        name = region["name"]
        return f"<!-- table:{name} -->\n{TABLES[name](results)}<!-- /table -->"

    return REGION.sub(generate, text)


def stale_documents(root: Path) -> dict[Path, tuple[str, str]]:
    """README.md and docs/*.md, where they exist and differ from their rows: the text before and after."""
    found = {}
    for path in [*root.glob("README.md"), *sorted(root.glob("docs/*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = fill(before, path, root / "benchmarks" / "results")
        if after != before:
            found[path] = (before, after)
    return found


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite the documents under ``root``, or compare them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 on a difference")
    check = parser.parse_args(arguments).check
    try:
        stale = stale_documents(root)
    except RowError as error:
        print(error, file=sys.stderr)
        return 2
    for path, (before, after) in stale.items():
        name = str(path.relative_to(root))
        if check:
            old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
            sys.stdout.writelines(difflib.unified_diff(old, new, name, f"{name} (generated)"))
        else:
            path.write_text(after, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
