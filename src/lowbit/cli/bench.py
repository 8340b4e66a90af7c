"""``lowbit bench``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from lowbit.cli.console import print_notes, print_table, progress

bench = typer.Typer(no_args_is_help=True, help="Benchmarks against peers, side by side.")


@bench.callback()
def _benchmarks() -> None:
    pass


@bench.command()
def speed(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Float model, folder or hub id; default: BERT-base, random weights."),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option("--shapes", help="Rows x tokens, as in 1x32,8x128; default: five of them, with --text none."),
    ] = None,
    peers: Annotated[
        str | None, typer.Option("--peers", help="Names or families, as in torch-int8,openvino; default: all.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Texts, one a line, to run in their true lengths.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of each peer; default: torch's own.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns that each peer takes.")] = 7,
    work: Annotated[
        Path | None, typer.Option("--work", metavar="DIR", help="Keep what peers quantized here, for the next run.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the rows to this file, one JSON a line.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the ratios, as SVG.")] = None,
) -> None:
    """Time a model in every runtime that is installed, taking turns: ours, and what others make of it."""
    from lowbit.bench import draw, read_texts
    from lowbit.bench import speed as run

    with progress("bench speed") as update:
        rows = run(
            model,
            peers=_names(peers),
            shapes=_names(shapes),
            texts=None if text is None else read_texts(text),
            threads=threads,
            rounds=rounds,
            work=work,
            progress=update,
        )
    if json is not None:
        with json.open("a", encoding="utf-8") as file:
            file.writelines(json_module.dumps(row) + "\n" for row in rows)
    if plot is not None:
        plot.write_text(draw(rows), encoding="utf-8")
    _show(rows)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _show(rows: list[dict[str, Any]]) -> None:
    timed = [row for row in rows if "seconds" in row]
    for workload in dict.fromkeys(row["workload"] for row in timed):
        of_workload = sorted((row for row in timed if row["workload"] == workload), key=lambda row: row["seconds"])
        print_table([_line(row) for row in of_workload], title=workload)
    notes = [f"{row['peer']}: absent, {row['absent']}" for row in rows if "absent" in row]
    failed = [row for row in rows if "error" in row]
    notes += [f"{row['peer']} failed ({row.get('workload', 'before timing')}): {row['error']}" for row in failed]
    loaded = {row["workload"]: row["foreign"] for row in timed if row["clean"] is False}
    notes += [f"{workload}: other processes kept {cores:.2f} processors busy" for workload, cores in loaded.items()]
    print_notes(notes)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row["quartiles"]
    return {
        "peer": row["peer"],
        "ms": 1e3 * row["seconds"],
        "quartiles": f"{1e3 * low:.4g}-{1e3 * high:.4g}",
        "times fp32": row["ratio"],
        "texts/s": row["texts_per_second"],
        "cosine": None if row["cosine"] is None else f"{row['cosine']:.5f}",
        "first s": row["first_seconds"],
        "disk": decimal(row["disk_bytes"]),
        "resident": None if row.get("resident_bytes") is None else decimal(row["resident_bytes"]),
        "quantize s": row["quantize_seconds"],
        "load s": row["load_seconds"],
    }
