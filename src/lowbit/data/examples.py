"""The one container of labelled text."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from lowbit.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Texts with their labels, column by column, as plain Python values.

    ``pairs`` holds the second text of each row, ``labels`` class indices into ``label_names`` or, where that
    is ``None``, floats. ``source`` is the path or hub id that messages name. Columns of different lengths
    raise :class:`DataError`.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float] | None
    label_names: tuple[str, ...] | None
    source: str

    def __post_init__(self) -> None:
        for name, column in (("pairs", self.pairs), ("labels", self.labels)):
            if column is not None and len(column) != len(self.texts):
                raise DataError(
                    f"{self.source}: {len(column)} {name} for {len(self.texts)} texts; give one for each text"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Iterable[int]) -> "Examples":
        """The rows at ``indices``, in that order."""
        rows = list(indices)
        return replace(
            self,
            texts=[self.texts[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
            labels=None if self.labels is None else [self.labels[row] for row in rows],
        )

    def sample(self, n: int, seed: int = 0) -> "Examples":
        """``n`` rows drawn without replacement; all rows, permuted, where there are no more than ``n``."""
        if n < 1:
            raise DataError(f"{self.source}: cannot sample {n} rows; ask for at least 1")
        return self.select(self._permutation(seed)[:n])

    def split(self, held_out: float, seed: int = 0) -> tuple["Examples", "Examples"]:
        """Two disjoint parts that together hold every row: the kept one and the ``held_out`` fraction."""
        size = round(held_out * len(self))
        if not 0 < size < len(self):
            raise DataError(
                f"{self.source}: holding out {held_out} of {len(self)} rows leaves one side empty; "
                "choose another fraction between 0 and 1"
            )
        order = self._permutation(seed)
        return self.select(order[size:]), self.select(order[:size])

    def _permutation(self, seed: int) -> list[int]:
        return np.random.default_rng(seed).permutation(len(self)).tolist()
