"""uint8 frames to what both towers read: the same pixels, normalised once for each.

Resizing and cropping are done by the simulator workers (``gipo_envs.openvla_image``), so that only uint8 at
the network's size is stored and moved.

Shape suffixes: B batch, C cameras, H height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gipo_vla.policies.precision import KeepsDtype

DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class PixelNormalizer(KeepsDtype):
    """(B, C, H, H, 3) uint8 to (B, 6C, H, H) float32: for each camera DINOv2's channels, then SigLIP's."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(DINO_MEAN + SIGLIP_MEAN).view(6, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(DINO_STD + SIGLIP_STD).view(6, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        channels_first = images.movedim(-1, 2).float().div(255.0)  # (B, C, 3, H, H)
        twice = torch.cat([channels_first, channels_first], dim=2)
        return ((twice - self.mean) / self.std).flatten(1, 2)
