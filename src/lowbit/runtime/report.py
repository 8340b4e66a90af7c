"""What ``prepare`` has done to a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What the modules of one kind were turned into, and why."""

    kind: str
    modules: int
    kernel: str
    why: str


@dataclass(frozen=True)
class RuntimeReport:
    """The execution layout of a model, as ``model.lowbit_runtime`` holds it.

    ``absent`` names what would make it faster and is missing; ``added_error`` is the largest relative weight error that
    the layout adds to a module, and ``error_module`` that module.
    """

    backend: str
    mode: str
    choices: tuple[Choice, ...]
    absent: tuple[str, ...] = ()
    added_error: float = 0.0
    error_module: str = ""

    def __str__(self) -> str:
        """One line per kind of module."""
        lines = [f"{self.backend}, {self.mode}"]
        lines += [f"  {c.modules} x {c.kind}: {c.kernel} ({c.why})" for c in self.choices]
        lines += [f"  absent: {what}" for what in self.absent]
        if self.error_module:
            lines.append(f"  largest weight error added: {self.added_error:.2%} in {self.error_module}")
        return "\n".join(lines)
