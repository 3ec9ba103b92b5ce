"""The residual networks of `nets` made of PyTorch's layers, to compare with. It must be installed."""

from typing import Any

STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def torch_resnet(architecture: str, num_classes: int, width: int, channels: int, bias: bool) -> Any:
    """A module that maps images (B, channels, H, W) to logits and features, both not normalized."""
    import torch  # Optional: whoever calls this has asked for it.

    nn = torch.nn

    def conv(i, o, size, stride):
        return nn.Conv2d(i, o, size, stride, padding=size // 2, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, i, c, stride):
            super().__init__()
            if architecture == "resnet50":
                o = 4 * c
                shapes = [(i, c, 1, 1), (c, c, 3, stride), (c, o, 1, 1)]
            else:
                o = c
                shapes = [(i, c, 3, stride), (c, c, 3, 1)]
            self.convs = nn.ModuleList([conv(*shape) for shape in shapes])
            self.norms = nn.ModuleList([nn.BatchNorm2d(shape[1]) for shape in shapes])
            self.shortcut = None
            if stride != 1 or i != o:
                self.shortcut, self.shortcut_norm = conv(i, o, 1, stride), nn.BatchNorm2d(o)
            self.outputs = o

        def forward(self, x):
            y = x
            for i, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                y = norm(layer(y))
                y = y if i == len(self.convs) - 1 else torch.relu(y)
            return torch.relu(y + (x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.stem_norm = conv(channels, width, 3, 1), nn.BatchNorm2d(width)
            self.blocks = nn.ModuleList()
            i: Any = width
            for stage, count in enumerate(STAGES[architecture]):
                for j in range(count):
                    self.blocks.append(Block(i, width * 2**stage, 2 if stage and not j else 1))
                    i = self.blocks[-1].outputs
            self.classifier = nn.Linear(i, num_classes, bias=bias)

        def forward(self, x):
            x = torch.relu(self.stem_norm(self.stem(x)))
            for block in self.blocks:
                x = block(x)
            features = x.mean((2, 3))
            return self.classifier(features), features

    return Net()
