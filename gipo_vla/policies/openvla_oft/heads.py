"""The small published modules beside the main checkpoint: proprio projector and continuous (L1) action head.

Their parameter names are the published ones, so that ``proprio_projector--*.pt`` and ``action_head--*.pt``
load as they are.

Shape suffixes: B batch, K steps of a chunk, D action dimensions, E width of the Llama, R proprioception.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ProprioProjector(nn.Module):
    """Normalised proprioception (B, R) to one token (B, E)."""

    def __init__(self, proprio_size: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(proprio)))


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.ffn(inputs)


class ResidualMlp(nn.Module):
    """OpenVLA-OFT's ``MLPResNet`` with two blocks."""

    def __init__(self, input_size: int, width: int, output_size: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_size)
        self.fc1 = nn.Linear(input_size, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.fc1(self.layer_norm1(inputs)))
        for block in self.mlp_resnet_blocks:
            hidden = block(hidden)
        return self.fc2(self.layer_norm2(hidden))


class L1ActionHead(nn.Module):
    """Hidden states of the action positions to normalised continuous actions (``L1RegressionActionHead``)."""

    def __init__(self, width: int, action_dims: int) -> None:
        super().__init__()
        self.action_dims = action_dims
        self.model = ResidualMlp(width * action_dims, width, action_dims)

    def forward(self, states: Tensor) -> Tensor:
        """(B, K*D, E) to (B, K, D)."""
        batch = states.shape[0]
        return self.model(states.reshape(batch, -1, self.action_dims * states.shape[-1]))
