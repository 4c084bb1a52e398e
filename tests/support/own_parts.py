"""A network and an objective as users write them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import soflow


class OwnNet(nn.Module):
    """A small network for vectors."""

    def __init__(self, size=2, width=16, classes=0):
        super().__init__()
        self.table = nn.Embedding(classes + 1, width)
        self.inner = nn.Linear(size + 2 + width, width)
        self.out = nn.Linear(width, size)

    def forward(self, x, t, s, labels=None):
        rows = torch.full_like(t, self.table.num_embeddings - 1) if labels is None else labels
        inputs = torch.cat([x, t[:, None], s[:, None], self.table(rows.long())], 1)
        return self.out(torch.tanh(self.inner(inputs)))


@dataclass(frozen=True)
class OwnObjective:
    """Flow matching, written from scratch."""

    samplers: ClassVar = ("heun",)
    whole_network: ClassVar = False
    scale: float = 1.0

    def draw(self, shape, generator):
        return soflow.FlowMatching().draw(shape, generator)

    def __call__(self, model, batch, draws, progress):
        point = model.noising.sample(batch.data, draws.noise, draws.t)
        F = model.net(point.x_t, point.t, point.t, batch.labels)
        squared = ((F - point.v_t) ** 2).flatten(1).mean(1)
        loss = self.scale * squared
        term = soflow.Term(loss, squared.detach(), torch.ones_like(squared), {"t": point.t})
        return soflow.Losses(loss.mean(), {}, {"own": term})
