"""A small model that is not this project's, for checkpoints as any other program makes them.

It has what a reader of checkpoints stumbles over: pairs of tied weights, trained and frozen, a layer that is used three
times, frozen parameters, buffers of four kinds, parameters of one number, on request without dimensions, and odd sizes, so
that everything has to be padded.
"""

import torch
from torch import Tensor, nn

PIECES, WIDTH, INNER, PLACES = 67, 31, 53, 13


class Perch(nn.Module):
    """A feed-forward layer; ``gain`` and ``shift`` have one number, the second bias is frozen."""

    def __init__(self, gain_shape: tuple[int, ...]):
        super().__init__()
        self.calm = nn.LayerNorm(WIDTH)
        self.rise = nn.Linear(WIDTH, INNER)
        self.sink = nn.Linear(INNER, WIDTH)
        self.gain = nn.Parameter(torch.full(gain_shape, 0.5))
        self.shift = nn.Parameter(torch.full((1,), 0.25))
        nn.init.normal_(self.sink.bias)
        self.sink.bias.requires_grad = False

    def forward(self, x_BNW: Tensor) -> Tensor:
        return x_BNW + self.gain * self.sink(self.rise(self.calm(x_BNW)).tanh()) + self.shift


class Calm(nn.LayerNorm):
    """A LayerNorm with a buffer."""

    def __init__(self):
        super().__init__(WIDTH)
        self.register_buffer("hum", torch.linspace(0, 0.1, WIDTH))

    def forward(self, x_BNW: Tensor) -> Tensor:
        return super().forward(x_BNW) + self.hum.to(x_BNW.dtype)


class Parrot(nn.Module):
    """Says the ids that it hears: ``[B, N]`` ids → loss.

    Args:
        idle: adds a layer that never gets a gradient.
        scalar: ``gain`` has no dimensions, which DeepSpeed 0.19.8 bears at ZeRO 1 and 2 only.
    """

    def __init__(self, idle: bool = False, scalar: bool = False):
        super().__init__()
        self.register_buffer("level", torch.linspace(-1, 1, WIDTH))
        self.register_buffer("heard", torch.zeros((), dtype=torch.int64))
        self.register_buffer("open", torch.arange(PLACES) % 3 > 0)
        self.register_buffer("scratch", torch.ones(5), persistent=False)
        self.words = nn.Embedding(PIECES, WIDTH)
        self.places = nn.Parameter(torch.randn(PLACES, WIDTH), requires_grad=False)
        self.perches = nn.ModuleList(Perch(() if scalar else (1, 1)) for _ in range(3))
        self.calm = nn.LayerNorm(WIDTH)
        self.calmer = nn.ModuleList([Calm()] * 3)
        self.say = nn.Linear(WIDTH, PIECES)
        if idle:
            self.idle = nn.Linear(7, 5)
        self.say.weight = self.words.weight
        self.perches[2].rise.weight = self.perches[0].rise.weight
        self.perches[1].sink.bias = self.perches[0].sink.bias

    def forward(self, ids: Tensor) -> Tensor:
        self.heard += ids.numel()
        x_BNW = self.words(ids)
        x_BNW = x_BNW + (self.places * self.open[:, None] + self.level).to(x_BNW.dtype)
        for perch in self.perches:
            x_BNW = perch(x_BNW)
        for calm in self.calmer:
            x_BNW = calm(x_BNW)
        logits = self.say(self.calm(x_BNW))
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())


def groups(model: nn.Module) -> list[dict]:
    """Four groups, in another order than the module's; the last holds one number, so that other ranks have none of it."""
    parameters = dict(model.named_parameters())
    alone = parameters.pop("perches.1.shift")
    rest = [name for name in parameters if name.startswith(("words", "calm"))]
    matrices = [name for name, parameter in parameters.items() if parameter.ndim >= 2 and name not in rest]
    vectors = [name for name in parameters if name not in rest and name not in matrices]
    return [
        {"params": [parameters[name] for name in vectors], "weight_decay": 0.0},
        {"params": [parameters[name] for name in matrices], "weight_decay": 0.1},
        {"params": [parameters[name] for name in rest], "weight_decay": 0.0, "lr": 0.003},
        {"params": [alone], "weight_decay": 0.0},
    ]
