"""The networks that can be timed, and the ways in which ours are run."""

from contextlib import nullcontext
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from measure import interleave, peak_growth, spread
from torch import Tensor
from torch.fx.experimental.optimization import fuse

import fcvit_mm
from fcvit_mm.errors import UserError
from fcvit_mm.models import Backbone
from fcvit_mm.models.layers import count_parameters
from fcvit_mm.models.variants import VARIANTS
from fcvit_mm.ops import use_ops

NUM_CLASSES = 1000
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
#: Memory layouts by the names that the table shows.
LAYOUTS = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}

#: Networks that ours are compared with, by timm's names. ``sized``: built for one input size, as windowed attention is.
PEERS = {
    'convnext_tiny': dict(sized=False),
    'swin_tiny_patch4_window7_224': dict(sized=True),
    'poolformer_s24': dict(sized=False),
    'resnet50': dict(sized=False),
}


class Way(NamedTuple):
    """A way to run a network.

    Attributes:
        about (str): Description for the reader.
        ops (str): ``auto`` or ``reference``, for :func:`fcvit_mm.ops.use_ops`.
        layout (str, optional): A key of ``LAYOUTS``; ``None`` for the faster one, measured at the start of the run.
        optimized (bool): Whether inference goes through :func:`fcvit_mm.optimize_for_inference`.
        graphs (bool): Whether it replays CUDA graphs.
        keeps_layout (bool): Whether our backbone computes in its input's layout instead of its preferred one.
    """

    about: str
    ops: str = 'auto'
    layout: Optional[str] = 'channels_last'
    optimized: bool = False
    graphs: bool = False
    keeps_layout: bool = False


#: Ways to run our networks, by the suffix of the network's name.
WAYS = {
    '': Way('as a user gets it: for inference through fcvit_mm.optimize_for_inference', optimized=True),
    'graphs': Way('the same, with cuda_graphs=True', optimized=True, graphs=True),
    'as_built': Way('the module as built'),
    'reference': Way(
        'reference implementations, NCHW: as the published code runs', 'reference', 'NCHW', keeps_layout=True
    ),
    'reference_channels_last': Way('reference implementations, channels_last', 'reference', keeps_layout=True),
    'reference_best': Way(
        'reference implementations, the faster layout of the two', 'reference', None, keeps_layout=True
    ),
}
PEER_WAY = Way('timm, the faster layout of the two', 'reference', None)
#: After any of these names: arguments of ``torch.compile`` for inference and for training. In inference, weights are
#: constants (freezing): see :func:`let_compile_all`.
COMPILED: Dict[str, Tuple[Dict[str, Any], Dict[str, Any]]] = {
    'compiled': ({}, {}),
    'replayed': (dict(mode='reduce-overhead'), dict(mode='reduce-overhead')),
}


class Task(NamedTuple):
    """The task of every network of a run.

    Attributes:
        mode (str): ``inference`` or ``train``.
        device (str): Device, such as ``cpu``, ``cuda`` or ``cuda:1``.
        batch (int): Batch size.
        size (tuple[int, int]): Height and width of the images.
        features (bool): Compute all stages' maps, as for dense prediction, instead of class scores.
        threads (int): PyTorch's threads on the CPU.
    """

    mode: str
    device: str
    batch: int
    size: Tuple[int, int]
    features: bool
    threads: int


class TimedNetwork(NamedTuple):
    """A network, a way to run it and a dtype: one row of the table."""

    label: str
    network: str
    way: Way
    compiled: str
    dtype: str


def choices() -> Dict[str, Tuple[str, Way, str]]:
    """Return all names that ``--networks`` takes (without a dtype) -> network, way, kind of compilation."""
    found: Dict[str, Tuple[str, Way, str]] = {}
    for network in VARIANTS:
        for suffix, way in WAYS.items():
            found['_'.join(filter(None, (network, suffix)))] = (network, way, '')
    for network in PEERS:
        found[network] = (network, PEER_WAY, '')
    for how in COMPILED:
        found.update(
            {f'{name}_{how}': (network, way, how) for name, (network, way, before) in found.items() if not before}
        )
    return found


def parse_network(label: str, dtype: str) -> TimedNetwork:
    """Parse a name of ``--networks``, with its own dtype after an ``@`` or the run's.

    Raises:
        UserError: No such network, or no such dtype.
    """
    name, _, own = label.partition('@')
    known = choices()
    if name not in known:
        raise UserError(
            f'unknown network {name!r}, expected one of ours ({", ".join(VARIANTS)}), optionally followed by one of '
            f'{", ".join(f"_{way}" for way in WAYS if way)}, or a peer ({", ".join(PEERS)}); both optionally followed '
            f'by _{" or _".join(COMPILED)} and a dtype, as in fcvit_b12@bfloat16'
        )
    if (own or dtype) not in DTYPES:
        raise UserError(f'{label}: unknown dtype {own!r}, expected one of {", ".join(DTYPES)}')
    return TimedNetwork(label, *known[name], own or dtype)


def keep_layout(backbone: Backbone) -> None:
    """Let a backbone compute in its input's layout, as the published code does, on CPUs too."""
    backbone.prefers_channels_last = lambda device: False


class Classifier(nn.Module):
    """A backbone, the mean over its last map or its class token, a linear layer."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.out_channels[-1], NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        last = self.backbone(x)[-1]
        return self.head(last.mean((2, 3)) if last.ndim == 4 else last)


def build(network: str, way: Way, task: Task) -> nn.Module:
    """Build a network with random weights, the same each time, in float32 on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if network in PEERS:
            return _build_peer(network, task)
        variant, options = VARIANTS[network], {}
        if task.features:
            options = dict(out_indices=(0, 1, 2, 3), **(dict(out_type='pyramid') if variant.class_token else {}))
        backbone = variant.build(**options)
        if way.keeps_layout:
            keep_layout(backbone)
        return backbone if task.features else Classifier(backbone)


def _build_peer(network: str, task: Task) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f'{network} needs timm, which is not installed: pip install timm, or choose other networks'
        ) from error
    options: Dict[str, Any] = dict(img_size=task.size) if PEERS[network]['sized'] else {}
    model = timm.create_model(network, features_only=task.features, **options)
    if task.mode == 'inference' and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = fuse(model.eval())  # ours has its BatchNorms in its convolutions, too
    return model


def counted(network: str, task: Task, device: str, batch: int) -> Tuple[nn.Module, Tensor]:
    """Return the reference implementation of a network and a batch of images, to count operations on."""
    with torch.device(device):
        way = PEER_WAY if network in PEERS else WAYS['reference']
        return build(network, way, task).eval(), torch.empty(batch, 3, *task.size)


class Prepared(NamedTuple):
    """A network on its device, and what is timed.

    Attributes:
        call (Callable): One forward pass, or one training step.
        params (int): Parameter values of the network as built.
    """

    call: Callable[[], None]
    params: int


def prepare(timed: TimedNetwork, task: Task, layout: str) -> Prepared:
    """Prepare a network to be timed.

    The rules are the same for all: inference casts weights and images to the dtype; training keeps float32 weights
    and runs under autocast, with AdamW. Images are random and already on the device, in the layout.

    Raises:
        UserError: The way needs something that is not available.
    """
    device, dtype, memory_format = torch.device(task.device), DTYPES[timed.dtype], LAYOUTS[layout]
    model = build(timed.network, timed.way, task)
    params = count_parameters(model)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(task.batch, 3, *task.size, generator=generator)
    images = images.to(device=device, memory_format=memory_format)
    if timed.compiled:
        let_compile_all(freeze=task.mode == 'inference')
    if task.mode == 'train':
        return Prepared(_training_step(model.to(device=device, memory_format=memory_format), images, timed), params)

    model = model.eval().to(device=device, dtype=dtype, memory_format=memory_format)
    images = images.to(dtype=dtype)
    if timed.way.optimized:
        model = _optimized(model, images, timed)
    if timed.compiled:
        model = torch.compile(model, **COMPILED[timed.compiled][0])

    def call() -> None:
        with torch.no_grad(), use_ops(timed.way.ops):
            model(images)

    return Prepared(call, params)


def faster_layout(timed: TimedNetwork, task: Task) -> Tuple[str, Dict[str, float]]:
    """Return the layout in which a network takes less time, eager, and the seconds in each."""
    eager, device = timed._replace(compiled=''), torch.device(task.device)
    # In turn, so that varying speed of the machine does not affect the choice.
    times = interleave({layout: prepare(eager, task, layout).call for layout in LAYOUTS}, 7, 1, device)
    seconds = {layout: spread(values).median for layout, values in times.items()}
    return min(seconds, key=seconds.get), seconds


def memory_of(timed: TimedNetwork, task: Task, layout: str) -> int:
    """Measure the peak of a network's second call, in a process of its own: see :func:`measure.in_child`."""
    torch.set_num_threads(task.threads)
    call = prepare(timed, task, layout).call
    call()
    return peak_growth(call, torch.device(task.device))


def _optimized(model: nn.Module, images: Tensor, timed: TimedNetwork) -> nn.Module:
    optimize = getattr(fcvit_mm, 'optimize_for_inference', None)
    if optimize is None:
        raise UserError(
            f'{timed.label}: this fcvit_mm has no optimize_for_inference: use {timed.network}_as_built for the '
            'network without it'
        )
    return optimize(model, images, **(dict(cuda_graphs=True) if timed.way.graphs else {}))


def let_compile_all(freeze: bool) -> None:
    """Set up ``torch.compile`` for all that is compiled later.

    Networks of one class share a forward, of which it keeps no more than 8 versions unless told. Weights become
    constants by a setting of the process alone: as an option of a call it has no effect (torch 2.11).
    """
    import torch._inductor.config as inductor  # which takes a second

    config = torch._dynamo.config
    setattr(config, 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit', 256)
    inductor.freezing = freeze


def _training_step(model: nn.Module, images: Tensor, timed: TimedNetwork) -> Callable[[], None]:
    model.train()
    # With this learning rate the weights hardly change in thousands of steps; the time does not depend on it.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-8)
    labels = torch.arange(len(images), device=images.device) % NUM_CLASSES
    dtype = DTYPES[timed.dtype]
    # No weight is kept from one step to the next in the autocast dtype, so one context serves all of them.
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(images.device.type, dtype)
    forward = torch.compile(model, **COMPILED[timed.compiled][1]) if timed.compiled else model

    def call() -> None:
        with use_ops(timed.way.ops):
            with autocast:
                outputs = forward(images)
            if isinstance(outputs, Tensor):
                loss = F.cross_entropy(outputs.float(), labels)
            else:
                loss = sum(output.float().mean() for output in outputs)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call
