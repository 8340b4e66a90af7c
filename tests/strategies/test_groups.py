import pytest
import torch

from lowbit.scheme import Scheme
from lowbit.strategies import groups
from lowbit.strategies.grid import Fit
from lowbit.strategies.groups import chunked, sorted_groups


@pytest.mark.parametrize("keep", [None, torch.arange(30).view(5, 1, 6) % 4 > 0], ids=["all", "some"])
def test_a_few_groups_at_a_time_give_the_fit_of_all(monkeypatch, keep):
    monkeypatch.setattr(groups, "_CHUNK", 13)  # two groups of six
    seen = []

    @chunked
    def find(blocks, scheme, keep, *, factor):
        seen.append(blocks.shape[0])
        scale = blocks.sum(dim=(1, 2)) * factor + (0 if keep is None else keep.sum(dim=(1, 2)))
        return Fit(scale, codebook=blocks[:, 0, :2])

    blocks = torch.arange(30.0).view(5, 1, 6)
    found = find(blocks, Scheme(), keep, factor=2)
    assert seen == [2, 2, 1]
    expected = blocks.sum(dim=(1, 2)) * 2 + (0 if keep is None else keep.sum(dim=(1, 2)))
    assert torch.equal(found.scale, expected)
    assert torch.equal(found.codebook, blocks[:, 0, :2])
    assert (found.zero_point, found.codes, found.shift) == (None, None, None)


def test_groups_are_sorted_with_what_is_not_kept_at_the_end():
    blocks = torch.tensor([[[3.0, -1.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]])
    keep = blocks != 0
    values, count = sorted_groups(blocks, keep)
    assert values.tolist() == [[-1, 2, 3, torch.inf], [5, torch.inf, torch.inf, torch.inf]]
    assert count.tolist() == [3, 1]
    values, count = sorted_groups(blocks, None)
    assert values.tolist() == [[-1, 0, 2, 3], [0, 0, 0, 5]]
    assert count.tolist() == [4, 4]
