"""What a step on the normalized UFM costs on paper: operations, memory and communication, on any machine.

The samples are split over the devices, W is on each of them, and logits exist a block at a time. Counted
are products of N x K x d, arrays as large as a point, and sums over the devices as large as W;
`tests/test_roofline.py` holds the counts against compiled programs.
"""

import dataclasses
import math
from collections.abc import Sequence

from experiments.harness import tables

GRADIENT_PRODUCTS = 4
"""Products of a cost and then its gradient, in blocks: the gradient makes the logits again."""
HESSIAN_PRODUCTS = 7
"""Products of the Hessian applied to one vector, in blocks."""
COPIES = {"gradient_descent": 10, "conjugate_gradient": 10, "trust_region": 16}
"""Arrays of the size of a point that a step of each solver holds at most, in any metric, rounded up."""
USABLE = 0.9
"""Share of a device's memory that a program can have beside the runtime."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """One device of a machine, by its maker's data sheet.

    Attributes:
        name: of the device.
        flops: operations a second in products of float32 at full precision.
        memory: bytes.
        bandwidth: bytes a second from and to that memory.
        link: bytes a second that it sends to other devices.
        most: devices in the largest machine of them.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    most: int


MACHINES = (
    # The link is the network between nodes of eight; within a node it is nine times as fast.
    Machine("H100", flops=60e12, memory=80e9, bandwidth=3.35e12, link=50e9, most=4096),
    # TPUs multiply bfloat16; float32 at full precision is six such products.
    Machine("TPU v5e", flops=197e12 / 6, memory=16e9, bandwidth=819e9, link=200e9, most=256),
    Machine("TPU v5p", flops=459e12 / 6, memory=95e9, bandwidth=2765e9, link=600e9, most=8192),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """A problem and how it is laid out: K classes, N samples, d dimensions, on so many devices."""

    num_classes: int
    samples: int
    dim: int
    devices: int = 1
    block_size: int = 1000
    itemsize: int = 4


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step costs a device.

    Attributes:
        flops: operations of the products.
        memory: bytes held at most.
        traffic: bytes read from and written to memory.
        sent: bytes sent to other devices.
    """

    flops: float
    memory: float
    traffic: float
    sent: float

    def seconds(self, machine: Machine) -> dict[str, float]:
        """The least seconds that each resource of `machine` needs; the largest of them bounds the step."""
        return {
            "arithmetic": self.flops / machine.flops,
            "memory": self.traffic / machine.bandwidth,
            "links": self.sent / machine.link,
        }


def product_flops(num_classes: int, samples: float, dim: int) -> float:
    """Additions and multiplications of one product of N x K x d."""
    return 2.0 * num_classes * samples * dim


def step(size: Size, solver: str = "conjugate_gradient", tries: float = 2, inner: float = 0) -> Step:
    """A step on one device of `size.devices`.

    Args:
        size: problem and layout.
        solver: a key of `COPIES`.
        tries: step sizes tried, a cost each: 1.65 in gradient descent, 2 in conjugate gradient, 1 in the
            trust region.
        inner: Hessians applied, in the trust region.
    """
    own = size.samples / size.devices
    products = tries + GRADIENT_PRODUCTS - 1 + HESSIAN_PRODUCTS * inner
    point = (own + size.num_classes) * size.dim
    block = min(size.block_size, own)
    # Logits are written and read in a try; a gradient reads them, then writes and twice reads its slopes.
    logits = (2 * tries + 5 + 10 * inner) * own * size.num_classes
    # Every product of a block reads or writes all of W.
    classifier = products * own / block * size.num_classes * size.dim
    # About twenty reads and writes of the features: retraction, projection, directions, inner products.
    features = 20 * (1 + inner) * own * size.dim
    sums = 1 + inner
    return Step(
        flops=products * product_flops(size.num_classes, own, size.dim),
        memory=size.itemsize * (COPIES[solver] * point + 3 * block * size.num_classes),
        traffic=size.itemsize * (logits + classifier + features),
        sent=size.itemsize * sums * reduced_elements(size),
    )


def reduced_elements(size: Size) -> float:
    """Numbers that each device sends so that all have the sum of W's gradients, around a ring."""
    return 2 * (size.devices - 1) / size.devices * size.num_classes * size.dim


def fewest_devices(size: Size, machine: Machine, solver: str = "conjugate_gradient") -> int | None:
    """The least power of two of devices in whose memory the problem fits; None if not in all of them."""
    for power in range(int(math.log2(machine.most)) + 1):
        held = step(dataclasses.replace(size, devices=2**power), solver).memory
        if held <= USABLE * machine.memory:
            return int(2**power)
    return None


def table(sizes: Sequence[Size], many: int = 256) -> str:
    """What fits where, in Markdown: steps of conjugate gradient on the fewest devices and on many."""
    header = [
        *("K", "N", "d", "device", "devices", "GB each", "TFLOP each"),
        *("arithmetic, s", "memory, s", "links, s"),
    ]
    rows = []
    for size in sizes:
        for machine in MACHINES:
            fewest = fewest_devices(size, machine)
            if fewest is None:
                rows.append([*_size(size), machine.name, f"more than {machine.most}"])
                continue
            for devices in sorted({fewest, max(fewest, many)}):
                cost = step(dataclasses.replace(size, devices=devices))
                memory, flops = f"{cost.memory / 1e9:.3g}", f"{cost.flops / 1e12:.3g}"
                times = [f"{x:.2g}" for x in cost.seconds(machine).values()]
                rows.append([*_size(size), machine.name, str(devices), memory, flops, *times])
    return tables.table(header, rows)


def _size(size: Size) -> list[str]:
    return [f"{size.num_classes:,}", _power(size.samples), f"{size.dim:,}"]


def _power(count: int) -> str:
    digits = math.floor(math.log10(count))
    return f"{count / 10**digits:.3g}e{digits}"
