"""Side-by-side benchmarks against peers."""

from lowbit.bench.inputs import SHAPES, read_texts
from lowbit.bench.peers import PEERS
from lowbit.bench.plot import draw
from lowbit.bench.speed import speed

__all__ = ["PEERS", "SHAPES", "draw", "read_texts", "speed"]
