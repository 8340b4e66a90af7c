"""A student with one fake-quantized layer and a generator, as small as the minimax core allows."""

import torch
from torch import nn

from lowbit.zeroshot import Ball, SamSga, Target


class FakeLinear(nn.Module):
    """A layer [out, in] that rounds its weight to multiples of ``grid`` and adds ``offset`` afterwards."""

    def __init__(self, weight, grid):
        super().__init__()
        self.latent, self.grid = nn.Parameter(weight.clone()), grid
        self.register_buffer("offset", torch.zeros_like(weight), persistent=False)

    def rounded(self):
        return (self.latent / self.grid).round() * self.grid

    def forward(self, inputs):
        weight = self.latent + (self.rounded() - self.latent).detach()  # straight-through
        return inputs @ (weight + self.offset).t()

    def target(self):
        return Target(self.offset, self.rounded)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Game:
    """Student, teacher's weight and generator, with the two losses and a core that plays them."""

    def __init__(self, ball=Ball(0.1), *, targets="rounded", learning_rate=0.01, **settings):  # noqa: B008
        self.student = FakeLinear(randn(3, 4), grid=0.5)
        self.teacher = randn(3, 4)
        self.generator = nn.Parameter(randn(4, 4, seed=2))
        self.minimizer = torch.optim.AdamW(self.student.parameters(), learning_rate)
        self.maximizer = torch.optim.SGD([self.generator], 0.02, maximize=True)
        chosen = {"rounded": self.student.target(), "latent": Target(self.student.latent)}[targets]
        self.core = SamSga(self.minimizer, self.maximizer, targets=[chosen], ball=ball, **settings)

    def loss(self, inputs):
        """Mean over the rows of ``inputs`` of the squared distance to the teacher."""
        made = inputs @ self.generator
        return (self.student(made) - made @ self.teacher.t()).square().sum(1).mean()

    def step(self, inputs):
        """One descent, and the ascent where it is due."""
        found = self.core.descend(lambda: self.loss(inputs))
        if self.core.ascent_due:
            self.core.ascend(lambda: self.loss(inputs))
        return found

    def state(self):
        """Everything that a step may change, as bytes and numbers."""
        tensors = [self.student.latent, self.student.offset, self.generator]
        for optimizer in (self.minimizer, self.maximizer):
            for values in optimizer.state_dict()["state"].values():
                tensors += [value for value in values.values() if isinstance(value, torch.Tensor)]
        return [tensor.detach().numpy().tobytes() for tensor in tensors]
