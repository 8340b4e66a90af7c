"""Draw docs/images/sam_sga.svg from results/sam_sga.jsonl: mean squared primal gradient norm against the horizon.

Written as SVG by hand, so that drawing needs no library and the same rows give the same bytes.
"""

import math
from pathlib import Path

from markup import newest
from rows import RESULTS, Row, read_rows

FILE = Path(__file__).resolve().parent.parent / "docs" / "images" / "sam_sga.svg"
COLORS = {
    "SAM-SGA": "#0072b2",
    "SGDA": "#e69f00",
    "small fixed rho": "#009e73",
    "no ascent": "#cc79a7",
    "large fixed rho": "#d55e00",
    "reversed ascent": "#666666",
}
WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 430, 20, 330
LOWEST, HIGHEST = 0.1, 100.0  # of the frame; what is above is not drawn, and the legend says so


def draw(results: Path = RESULTS, file: Path = FILE) -> None:
    """Write the plot."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(plot(newest(read_rows(results / "sam_sga.jsonl"), "method")), encoding="utf-8")


def plot(rows: list[Row]) -> str:
    """The SVG of one row per method; all rows have the same horizons."""
    horizons, found = rows[0]["horizons"], {row["method"]: row for row in rows}
    parts = [*_frame(horizons), _bound(horizons, found["SAM-SGA"]["means"])]
    drawn = [(method, color) for method, color in COLORS.items() if method in found]
    for number, (method, color) in reversed(list(enumerate(drawn))):  # the first one lies on top
        points = [
            _place(horizons, horizon, mean)
            for horizon, mean in zip(horizons, found[method]["means"], strict=True)
            if mean is not None and mean <= HIGHEST
        ]
        if points:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
        label = method if points else f"{method} (above the frame)"
        parts.append(f'<rect x="{RIGHT + 15}" y="{TOP + 25 + 20 * number}" width="10" height="10" fill="{color}"/>')
        parts.append(_text(RIGHT + 31, TOP + 34 + 20 * number, label))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    white = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([f'{head} font-size="12">', white, *parts, "</svg>"]) + "\n"


def _frame(horizons: list[int]) -> list[str]:
    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}" fill="none" stroke="#999999"/>',
        _text((LEFT + RIGHT) / 2, BOTTOM + 38, "horizon T (log)", "middle"),
        _text(LEFT, TOP - 6, "mean over iterates of |∇φ|² (log)", "start"),
    ]
    for horizon in horizons:
        parts.append(_text(_place(horizons, horizon, LOWEST)[0], BOTTOM + 18, str(horizon), "middle"))
    for power in range(round(math.log10(LOWEST)), round(math.log10(HIGHEST)) + 1):
        y = _place(horizons, horizons[0], 10.0**power)[1]
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{10.0**power:g}", "end"))
    return parts


def _bound(horizons: list[int], means: list[float]) -> str:
    """A dashed line of slope -1/2 from the first point."""
    (x, y), (end, low) = (
        _place(horizons, horizon, means[0] * (horizons[0] / horizon) ** 0.5) for horizon in (horizons[0], horizons[-1])
    )
    line = f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{low:.1f}" stroke="black" stroke-dasharray="5 4"/>'
    legend = f'<line x1="{RIGHT + 11}" y1="{TOP + 10}" x2="{RIGHT + 29}" y2="{TOP + 10}" stroke="black"'
    return "\n".join([line, f'{legend} stroke-dasharray="5 4"/>', _text(RIGHT + 31, TOP + 14, "slope −1/2")])


def _place(horizons: list[int], horizon: int, value: float) -> tuple[float, float]:
    """Where a mean at a horizon is drawn."""
    across = math.log(horizon / horizons[0]) / math.log(horizons[-1] / horizons[0])
    down = math.log(HIGHEST / value) / math.log(HIGHEST / LOWEST)
    margin = 20
    return LEFT + margin + across * (RIGHT - LEFT - 2 * margin), TOP + down * (BOTTOM - TOP)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    draw()
