"""The layers that the encoder is made of."""

from samtrt.modeling import functional as F
from samtrt.modeling.functional import Tensor
from samtrt.modeling.module import Module, Parameter


class Linear(Module):
    """[..., in_features] → [..., out_features]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        self.weight = Parameter(out_features, in_features)
        self.bias = Parameter(out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """[B, in_channels, H, W] → [B, out_channels, H', W'] with a square kernel."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        self.stride, self.padding = stride, padding
        self.weight = Parameter(out_channels, in_channels, kernel_size, kernel_size)
        self.bias = Parameter(out_channels) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class LayerNorm(Module):
    """Normalises the last axis, in float32."""

    axis = -1

    def __init__(self, channels: int, eps: float) -> None:
        self.eps = eps
        self.weight = Parameter(channels, full_precision=True)
        self.bias = Parameter(channels, full_precision=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps, self.axis)


class LayerNorm2d(LayerNorm):
    """Normalises the channels of [B, C, H, W], in float32; eps is 1e-6 (Meta's common.py)."""

    axis = 1

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)


class MLP(Module):
    """Two linear layers with GELU between them (Meta's ``MLPBlock``)."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        self.lin1 = Linear(channels, hidden_channels)
        self.lin2 = Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))
