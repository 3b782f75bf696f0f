"""Peak bandwidth and arithmetic of the machine, measured: bytes copied and multiply-adds per second."""

from typing import Callable, Dict, Iterator, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from measure import best

from fcvit_mm.ops.conditions import cpu_convolves


class Ceilings(NamedTuple):
    """Peak rates, measured in this run on this device.

    Attributes:
        bandwidth (float): Bytes read and written in a second by a copy between buffers larger than any cache.
        multiply_adds (dict[str, float]): Multiply-adds in a second, by dtype.
        shapes (dict[str, str]): The operation that reached the peak, by dtype.
    """

    bandwidth: float
    multiply_adds: Dict[str, float]
    shapes: Dict[str, str]


def measure_ceilings(device: torch.device, dtypes: Dict[str, torch.dtype]) -> Ceilings:
    """Measure the bandwidth of a device, and its multiply-adds in each of the dtypes.

    A CPU without instructions for a dtype gets the rate of float32: our operations compute in float32 there, and
    PyTorch's products in the dtype would take minutes.
    """
    rates, shapes = {}, {}
    for name, dtype in dtypes.items():
        found = {}
        if device.type == 'cpu' and not cpu_convolves(dtype):
            dtype = torch.float32
        for shape, macs, call in _products(device, dtype):
            found[shape] = macs / best(call, device)
        shapes[name] = max(found, key=found.get)
        rates[name] = found[shapes[name]]
    return Ceilings(_bandwidth(device), rates, shapes)


def _bandwidth(device: torch.device) -> float:
    size = (256 if device.type == 'cpu' else 1024) * 2**20
    # Both are written before timing: the first write of a page includes its allocation by the system.
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * size / best(lambda: target.copy_(source), device, times=8)


def _products(device: torch.device, dtype: torch.dtype) -> Iterator[Tuple[str, int, Callable[[], torch.Tensor]]]:
    """Yield products of several shapes: name, multiply-adds and the call."""
    for side in (1024, 2048) if device.type == 'cpu' else (4096, 8192):
        a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
        yield f'{side}x{side} by {side}x{side}', side**3, lambda a=a, b=b: a @ b
    # A convolution, or the shape of a layer, may reach a higher rate than a square product.
    batch = 8 if device.type == 'cpu' else 256
    for channels, out, kernel, side in ((320, 1280, 1, 14), (256, 256, 1, 28), (256, 256, 3, 28)):
        x = torch.randn(batch, channels, side, side).to(device, dtype, memory_format=torch.channels_last)
        weight = torch.randn(out, channels, kernel, kernel).to(device, dtype, memory_format=torch.channels_last)
        macs = batch * side * side * channels * out * kernel**2
        yield (
            f'{kernel}x{kernel} convolution, {batch}x{channels}x{side}x{side} to {out} channels',
            macs,
            lambda x=x, weight=weight, padding=kernel // 2: F.conv2d(x, weight, padding=padding),
        )
