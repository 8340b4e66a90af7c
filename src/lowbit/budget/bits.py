"""Mixed bits: each matrix gets the width that makes the most of a size."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lowbit.errors import SchemeError
from lowbit.plan import Plan, payload_bytes, with_schemes

WIDTHS = range(2, 9)

Costs = Mapping[str, Mapping[int, float]]


def choose_bits(plan: Plan, costs: Costs) -> Plan:
    """The plan with the widths that lower the sum of ``costs`` most at the effective bits that its recipe asks for.

    ``costs[name][bits]`` is the harm of each module that the recipe leaves a choice for. From the smallest widths on,
    the step with the largest gain per byte is taken as long as one fits: a walk along the convex hulls (Shoham and
    Gersho 1988, doi 10.1109/29.90373), whose last steps fill what is left. The result is never above the target, and
    no further step fits. A target out of reach raises :class:`SchemeError`.
    """
    target = plan.recipe.target_bits
    assert target is not None
    linears = [entry for entry in plan.quantized if entry.kind != "embedding"]
    schemes = {entry.name: entry.scheme for entry in linears if entry.scheme is not None and entry.name in costs}
    shapes = {entry.name: entry.shape for entry in linears if entry.shape is not None}
    sizes = {
        name: {bits: payload_bytes(scheme.with_bits(bits), shapes[name]) for bits in WIDTHS}
        for name, scheme in schemes.items()
    }
    chosen = dict.fromkeys(sizes, WIDTHS[0])
    weights = sum(math.prod(shape) for shape in shapes.values())
    now = sum(payload_bytes(e.scheme, shapes[e.name]) for e in linears if e.scheme is not None)
    fixed = now - sum(payload_bytes(scheme, shapes[name]) for name, scheme in schemes.items())
    _check_reach(target, fixed, sizes, weights)
    left = target * weights / 8 - fixed - sum(size[WIDTHS[0]] for size in sizes.values())
    while True:
        steps = [
            ((costs[name][chosen[name]] - costs[name][bits]) / (size[bits] - size[chosen[name]]), name, bits)
            for name, size in sizes.items()
            for bits in WIDTHS
            if bits > chosen[name] and size[bits] - size[chosen[name]] <= left
        ]
        if not steps:
            break
        _, name, bits = max(steps, key=lambda step: step[0])  # the first in model order where several are equal
        left -= sizes[name][bits] - sizes[name][chosen[name]]
        chosen[name] = bits
    reasons = {name: f"changes the output by {costs[name][bits]:.2g}" for name, bits in chosen.items()}
    return with_schemes(plan, {name: schemes[name].with_bits(bits) for name, bits in chosen.items()}, reasons)


def _check_reach(target: float, fixed: int, sizes: Mapping[str, Mapping[int, int]], weights: int) -> None:
    if not sizes:
        raise SchemeError("`target_bits` has nothing to choose: every block linear is skipped or has an override")
    low, high = (8 * (fixed + sum(size[bits] for size in sizes.values())) / weights for bits in (WIDTHS[0], WIDTHS[-1]))
    if not low <= target <= high:
        raise SchemeError(
            f"{target:g} effective bits cannot be met; this recipe reaches "
            f"{math.ceil(low * 1000) / 1000:g} to {math.floor(high * 1000) / 1000:g}"
        )
