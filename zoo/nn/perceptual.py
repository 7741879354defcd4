"""How far two pictures are from each other for a network that was trained to tell what is on them.

Pictures a and b (B, C, H, W) are in [-1, 1]; a distance is one number for each pair, (B,).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.autoencoder import group_norm
from zoo.nn.likelihood import wide

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FILES = ("vgg16-397923af.pth", "vgg.pth")  # torchvision's network, and the heads of LPIPS 0.1 for it


class FeatureNet(nn.Module):
    """A small classifier of images, whose scales are features: (B, C, H, W) -> logits (B, classes).

    Each scale is two convolutions and, but for the first, a halving before them.
    """

    def __init__(self, channels: int, classes: int, *, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        sizes = [channels, *widths]
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.MaxPool2d(2, ceil_mode=True) if index else nn.Identity(),
                *(
                    layer
                    for enter in (a, b)
                    for layer in (nn.Conv2d(enter, b, 3, padding=1), group_norm(b), nn.ReLU())
                ),
            )
            for index, (a, b) in enumerate(zip(sizes, widths))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1].mean((2, 3)))

    def features(self, x: Tensor) -> list[Tensor]:
        """What each scale says of a picture: (B, C_i, H_i, W_i)."""
        found = []
        for scale in self.scales:
            x = scale(x)
            found.append(x)
        return found


class LPIPS(nn.Module):
    """The learned distance of Zhang et al. 2018, version 0.1 over VGG-16: sum_i mean_hw sum_c w_ic (u_i(a) - u_i(b))^2.

    u_i are features after five of VGG's layers, of length 1 at each place, w_i weights fitted to people's judgements.

    root    the folder of its two weight files, which this project does not bring: torchvision's
            vgg16-397923af.pth and LPIPS 0.1's vgg.pth. `load` reads them; then they are part of the state dict,
            so that who has that needs no files.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, root: str | Path) -> None:
        super().__init__()
        self.root = Path(root)
        self.told = "LPIPS 0.1 over VGG-16"
        self.register_buffer(
            "shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.scales = nn.ModuleList()
        channels = 3
        for index, widths in enumerate(VGG16):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.scales.append(nn.Sequential(*layers))
        self.heads = nn.ParameterList(torch.zeros(widths[-1]) for widths in VGG16)
        self.requires_grad_(False)

    @torch.no_grad()
    def load(self) -> None:
        """Read the weights. FileNotFoundError says which are missing, and what does without them."""
        if missing := [name for name in FILES if not (self.root / name).is_file()]:
            raise FileNotFoundError(
                f"{self.root} has no {' and no '.join(missing)}, the weights of LPIPS; put them there, or take "
                "features of a classifier: scripts/prepare.py features dataset=<one>, and perceptual=features"
            )
        network, heads = (
            torch.load(self.root / name, map_location="cpu", weights_only=True) for name in FILES
        )
        convolutions = [layer for scale in self.scales for layer in scale if isinstance(layer, nn.Conv2d)]
        numbers = sorted({int(name.split(".")[1]) for name in network if name.startswith("features.")})
        for convolution, number in zip(convolutions, numbers, strict=True):
            convolution.weight.copy_(network[f"features.{number}.weight"])
            convolution.bias.copy_(network[f"features.{number}.bias"])
        for index, head in enumerate(self.heads):
            head.copy_(heads[f"lin{index}.model.1.weight"].flatten())

    def features(self, x: Tensor) -> list[Tensor]:
        """VGG's features of a picture, each before the next halving; grey pictures count as colours."""
        x = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        found = []
        for scale in self.scales:
            x = scale(x)
            found.append(x)
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return sum(
            (apart(p, q) * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
            for p, q, head in zip(self.features(a), self.features(b), self.heads)
        )


def feature_distance(network: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS without its fitted weights, for any network with `features`: sum_i mean_hw sum_c (u_i(a) - u_i(b))^2."""
    return sum(
        apart(p, q).sum(1).mean((1, 2)) for p, q in zip(network.features(a), network.features(b), strict=True)
    )


def apart(p: Tensor, q: Tensor) -> Tensor:
    """The squared difference of features (B, C, H, W), each of length 1 at every place first; float32 at least."""
    return (F.normalize(wide(p), dim=1, eps=1e-10) - F.normalize(wide(q), dim=1, eps=1e-10)).square()


def no_perceptual() -> None:
    """No perceptual distance, where a config asks for one."""
