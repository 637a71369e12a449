"""DPImageBench's three networks (Gong et al., CCS 2025), and the small ones for two CPU cores.

All have three stages: the second and third halve the image and double the width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

MakeBlock = Callable[[int, int, int], nn.Module]


class Block(nn.Module):
    """after(shortcut + body(before(x))); the shortcut is x itself, or a projection of before(x)."""

    def __init__(
        self,
        body: list[nn.Module],
        shortcut: list[nn.Module] | None,
        before: list[nn.Module],
        after: list[nn.Module],
    ) -> None:
        super().__init__()
        self.before, self.body, self.after = map(lambda x: nn.Sequential(*x), (before, body, after))
        self.shortcut = nn.Sequential(*shortcut) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        ready = self.before(x)
        carried = x if self.shortcut is None else self.shortcut(ready)
        out: Tensor = self.after(carried + self.body(ready))
        return out


def make_resnet(channels: int, num_labels: int, *, depth: int) -> nn.Module:
    """ResNet with two 3x3 convolutions a block (He et al. 2016), projected where widths change."""

    def block(given: int, width: int, stride: int) -> nn.Module:
        body = [_conv(given, width, 3, stride), *_norm_relu(width), _conv(width, width, 3)]
        body.append(nn.BatchNorm2d(width))
        return Block(body, _project(given, width, stride), [], [nn.ReLU()])

    stem = [_conv(channels, 16, 3), *_norm_relu(16)]
    return _assemble(stem, 16, (16, 32, 64), (depth - 2) // 6, block, [], num_labels)


def make_wide_resnet(
    channels: int, num_labels: int, *, depth: int, widen: int, dropout: float
) -> nn.Module:
    """Wide ResNet, normalised before each convolution (Zagoruyko and Komodakis 2016)."""

    def block(given: int, width: int, stride: int) -> nn.Module:
        body = [_conv(given, width, 3, stride), *_norm_relu(width), nn.Dropout(dropout)]
        body.append(_conv(width, width, 3))
        shortcut = None if given == width else [_conv(given, width, 1, stride)]
        return Block(body, shortcut, _norm_relu(given), [])

    widths = (16 * widen, 32 * widen, 64 * widen)
    tail = _norm_relu(widths[-1])
    stem = [_conv(channels, 16, 3)]
    return _assemble(stem, 16, widths, (depth - 4) // 6, block, tail, num_labels)


def make_resnext(
    channels: int, num_labels: int, *, depth: int, cardinality: int, widen: int, base: int = 64
) -> nn.Module:
    """ResNeXt (Xie et al. 2017): grouped 3x3 between two 1x1; `base` channels a group at first."""

    def block(given: int, width: int, stride: int) -> nn.Module:
        inner = cardinality * width // widen
        body = [_conv(given, inner, 1), *_norm_relu(inner)]
        body += [_conv(inner, inner, 3, stride, cardinality), *_norm_relu(inner)]
        body += [_conv(inner, width, 1), nn.BatchNorm2d(width)]
        return Block(body, _project(given, width, stride), [], [nn.ReLU()])

    widths = (base * widen, 2 * base * widen, 4 * base * widen)
    stem = [_conv(channels, base, 3), *_norm_relu(base)]
    return _assemble(stem, base, widths, (depth - 2) // 9, block, [], num_labels)


def _assemble(
    stem: list[nn.Module],
    given: int,
    widths: tuple[int, int, int],
    num_blocks: int,
    block: MakeBlock,
    tail: list[nn.Module],
    num_labels: int,
) -> nn.Module:
    layers = list(stem)
    for stage, width in enumerate(widths):
        for number in range(num_blocks):
            layers.append(block(given, width, 2 if stage and not number else 1))
            given = width
    layers += [*tail, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, num_labels)]
    network = nn.Sequential(*layers)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return network


def _conv(given: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(given, width, size, stride, size // 2, groups=groups, bias=False)


def _norm_relu(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU()]


def _project(given: int, width: int, stride: int) -> list[nn.Module] | None:
    if given == width and stride == 1:
        return None
    return [_conv(given, width, 1, stride), nn.BatchNorm2d(width)]
