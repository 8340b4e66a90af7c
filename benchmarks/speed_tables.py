"""Tables of results/speed.jsonl, which `lowbit bench speed --json` writes."""

from pathlib import Path

from markup import MISSING, markdown, mebibytes, newest, show, table
from rows import Row, read_rows

RANDOM_BERT = "BERT-base, random"
OURS = {
    "lowbit-torch": "lowbit w4",
    "lowbit-torch-w8": "lowbit w8",
    "lowbit-memory": "lowbit w4, little memory",
}
PEERS = {"torch-fp32": "torch fp32", "torch-int8": "torch dynamic int8", "openvino-int8": "OpenVINO + NNCF W8A8"}
_KEY = ("model", "threads", "cpu", "peer", "workload")


def _lines(results: Path) -> tuple[list[str], dict[tuple, dict[str, Row]]]:
    """All workloads in the order of first use; per model, threads, processor and peer the rows by workload."""
    rows = newest((row for row in read_rows(results / "speed.jsonl") if row.get("clean")), *_KEY)
    lines: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(tuple(row[name] for name in _KEY[:4]), {})[row["workload"]] = row
    return list(dict.fromkeys(row["workload"] for row in rows)), lines


@table("speed")
def speed(results: Path) -> str:
    """One line per model and peer; a cell is the median of a pass and how many times faster than torch fp32."""
    workloads, lines = _lines(results)
    cells = [
        [model, peer, *(_cell(found.get(workload)) for workload in workloads), str(threads), cpu]
        for (model, threads, cpu, peer), found in lines.items()
    ]
    return markdown(["Model", "Peer", *workloads, "Threads", "Processor"], cells, text_columns=2)


@table("speed_ours")
def speed_ours(results: Path) -> str:
    """Our layouts beside the quickest peer of each workload, on the random BERT-base, processor by processor."""
    workloads, lines = _lines(results)
    random = {key: rows for key, rows in lines.items() if key[0] == RANDOM_BERT}
    shapes = [workload for workload in workloads if any(workload in rows for rows in random.values())]
    cells = []
    for cpu in dict.fromkeys(cpu for _, _, cpu, _ in random):
        found = {peer: rows for (_, _, where, peer), rows in random.items() if where == cpu}
        shown = [name for name in {**OURS, **PEERS} if name in found]
        cells += [
            [cpu, {**OURS, **PEERS}[name], *(_cell(found[name].get(shape)) for shape in shapes)] for name in shown
        ]
        cells.append([cpu, "quickest other", *(_quickest(found, shape) for shape in shapes)])
    return markdown(["Processor", "", *shapes], cells, text_columns=2)


def _quickest(found: dict[str, dict[str, Row]], shape: str) -> str:
    """The best time among peers by name, ours left out."""
    rows = [rows[shape] for peer, rows in found.items() if shape in rows and not peer.startswith("lowbit")]
    best = min(rows, key=lambda row: row["seconds"], default=None)
    return MISSING if best is None else f"{_cell(best)} {best['peer']}"


@table("speed_cost")
def speed_cost(results: Path) -> str:
    """One line per model and peer: agreement with fp32 in the first workload, bytes, time before the first text."""
    headings = ["Model", "Peer", "Version", "Cosine to fp32", "Disk", "Resident", "Quantize", "Load"]
    cells = []
    for (model, _, _, peer), found in _lines(results)[1].items():
        row = next((row for row in found.values() if "resident_bytes" in row), next(iter(found.values())))
        cells.append(
            [
                model,
                peer,
                show(row, "version"),
                show(row, "cosine", "{:.5f}"),
                mebibytes(row, "disk_bytes"),
                mebibytes(row, "resident_bytes"),
                show(row, "quantize_cpu_seconds", "{:.1f} s"),
                show(row, "load_seconds", "{:.2f} s"),
            ]
        )
    return markdown(headings, cells, text_columns=3)


def _cell(row: Row | None) -> str:
    return MISSING if row is None else f"{1e3 * row['seconds']:.1f} ms ({show(row, 'ratio', '{:.2f}×')})"
