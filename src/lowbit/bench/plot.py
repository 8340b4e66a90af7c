"""A dot per peer and workload: how many times faster than fp32 in eager torch. SVG by hand: it needs no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from lowbit.bench.rounds import Row

_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#666666")
_LEFT, _RIGHT, _TOP, _LINE = 190, 690, 30, 20
_WIDTH = 860
_MARKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def draw(rows: Sequence[Row]) -> str:
    """The SVG of a run, best peer of the first workload on top; rows without a ratio are left out."""
    timed = [row for row in rows if row.get("ratio")]
    workloads = list(dict.fromkeys(row["workload"] for row in timed))
    ranked = sorted(timed, key=lambda row: (workloads.index(row["workload"]), -row["ratio"]))
    peers = list(dict.fromkeys(row["peer"] for row in ranked))
    bottom = _TOP + _LINE * max(len(peers), len(workloads), 1)
    low, high = _range([row["ratio"] for row in timed])

    def across(ratio: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * math.log(ratio / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 45}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{bottom + 45}" fill="white"/>',
        _text((_LEFT + _RIGHT) / 2, bottom + 36, "times faster than torch fp32 eager (log)", "middle"),
    ]
    for mark in _MARKS:
        if low <= mark <= high:
            x, color = across(mark), "#666666" if mark == 1 else "#dddddd"
            parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{color}"/>')
            parts.append(_text(x, bottom + 18, f"{mark:g}", "middle"))
    parts += [_text(_LEFT - 10, _TOP + _LINE * line + 9, peer, "end") for line, peer in enumerate(peers)]
    for row in timed:
        y, color = _TOP + _LINE * peers.index(row["peer"]) + 5, _color(workloads, row["workload"])
        parts.append(f'<circle cx="{across(row["ratio"]):.1f}" cy="{y}" r="4" fill="{color}"/>')
    for line, workload in enumerate(workloads):
        y = _TOP + _LINE * line
        parts.append(f'<circle cx="{_RIGHT + 25}" cy="{y + 5}" r="4" fill="{_color(workloads, workload)}"/>')
        parts.append(_text(_RIGHT + 36, y + 9, workload, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _range(ratios: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis: the dots with some room, and fp32 itself."""
    return min([1.0, *ratios]) / 1.15, max([1.0, *ratios]) * 1.15


def _color(workloads: Sequence[str], workload: str) -> str:
    return _COLORS[workloads.index(workload) % len(_COLORS)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
