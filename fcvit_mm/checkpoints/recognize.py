"""Recognizing the network and task of a checkpoint, and renaming its weights to the names of this package.

:func:`recognize` finds the weights in the file and the prefix of the backbone's names, chooses the network that
explains most of the file's names, renames the tensors, and divides the others into heads, necks and unknown ones; the
heads show the task. A network explains a name if a row of its published names matches, or if it has a parameter of this
name, up to the numbers of stages and blocks.
"""

import re
import warnings
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterator, List, Mapping, Match, NamedTuple, Optional, Sequence, Set, Tuple, Type

import torch
from torch import Tensor

from ..models import Backbone
from ..models.published_names import PublishedNames, renamer
from ..models.variants import VARIANTS, variants_of
from .errors import CheckpointError
from .names import HEAD, PADDLE_LEAVES, TASKS, find_state_dict, is_head, some, tensors_of

#: Minimum fraction of the names in blocks that a network must explain to be recognized.
SHARE_OF_BLOCKS = 0.75
#: Beginning of our names of parameters in blocks.
BLOCK = re.compile(r'stages\.([^.]+)\.blocks\.([^.]+)\.')
#: Names that match a pattern, but have something else in place of the number of a stage or block.
_UNNUMBERED = re.compile(r'stages\.(?!\d+\.)|stages\.\d+\.blocks\.(?!\d+\.)')
#: Cache: network and variant -> parameter names, which are found by building the network.
_built: Dict[Tuple[Type[Backbone], Optional[str]], Tuple[str, ...]] = {}
#: Largest number of parts of a prefix that is found automatically (nested wrappers).
MAX_PREFIX = 5
#: Output norms that a network may have: ``norm0``, ``norm1``, ...
MAX_OUTPUTS = 8


class Recognized(NamedTuple):
    """A checkpoint's weights, under the names of this package.

    Attributes:
        network (type): The backbone's class.
        source (str): Source of the names: ``'published'``, ``'Paddle'`` or ``'OpenMMLab'``.
        task (str): ``'classifier'``, ``'detector'``, ``'segmentor'`` or ``'backbone'``.
        weights (str): Description of the chosen weights of the file.
        backbone (dict[str, Tensor]): Weights of the backbone.
        others (dict[str, Tensor]): Heads and necks, under the names they have in the complete model.
        unknown (tuple[str]): Names of the file that belong to neither.
        prefix (str): Prefix of the backbone's names in the file; ``unknown`` still has it.
    """

    network: Type[Backbone]
    source: str
    task: str
    weights: str
    backbone: Dict[str, Tensor]
    others: Dict[str, Tensor]
    unknown: Tuple[str, ...]
    prefix: str

    @property
    def arch(self) -> str:
        """The variant's name, or its depths and channels."""
        return name_arch(self.backbone, self.network)


def recognize(
    checkpoint: Dict[str, Any],
    path: str,
    ema: bool = False,
    prefix: Optional[str] = None,
    backbone: Optional[torch.nn.Module] = None,
) -> Recognized:
    """Recognize the content of a checkpoint by its keys, and rename its weights to our names.

    The network is the one whose names, published or ours, explain most of the file's; of several, the one with the
    fewest names. All subclasses of :class:`~fcvit_mm.models.Backbone` are considered, also those of other packages.

    Args:
        checkpoint (dict): Result of :func:`read_checkpoint`.
        path (str): Path of the file, for errors.
        ema (bool): Take the averaged weights.
        prefix (str, optional): Prefix of the backbone's names. ``None``: ``backbone.``, nothing, or, if it leads to
            known names, a wrapper's prefix before either (``student.``, ``base_model.model.``).
        backbone (nn.Module, optional): The backbone to load. It decides between two networks with the same names.

    Raises:
        CheckpointError: No tensors, no known network, an ambiguous network, or NaN in the weights.
    """
    state_dict, weights = find_state_dict(checkpoint, path, ema)
    tensors = tensors_of(state_dict)
    if not tensors:
        raise CheckpointError(
            f'{path} contains no tensors, only {some(state_dict)}, expected a state_dict: give the file with the '
            'weights'
        )
    prefix, matches = _find_prefix(tensors, path, prefix, backbone)
    inside = OrderedDict((key[len(prefix) :], value) for key, value in tensors.items() if key.startswith(prefix))
    rest = OrderedDict((key, value) for key, value in tensors.items() if not key.startswith(prefix))
    paddle = any(key.rsplit('.', 1)[-1] in PADDLE_LEAVES for key in inside)
    if paddle:
        inside = OrderedDict((_torch_leaf(key), value) for key, value in inside.items())

    match = _find_network(list(inside), matches, path, backbone)
    is_ignored = renamer((pattern, pattern) for pattern in names_of(match.network).ignored)
    named: Dict[str, Tensor] = OrderedDict()
    for key, value in inside.items():
        if is_ignored(key) is not None:
            continue
        name = match.names.get(key)
        if name is None or _UNNUMBERED.match(name):
            rest[prefix + key] = value
        elif name in named:
            raise CheckpointError(f'{path} has two tensors for {name}, one of them called {key}: remove one of them')
        else:
            named[name] = value

    others: Dict[str, Tensor] = OrderedDict()
    unknown: List[str] = []
    # The wrapper's prefix of the names of the complete model, including heads.
    wrapper = prefix[: -len('backbone.')] if prefix.endswith('backbone.') else prefix
    rename_head = renamer((row.published, row.ours) for row in HEAD)
    for key, value in rest.items():
        name = rename_head(key) or key
        if not is_head(name) and key.startswith(wrapper):
            name = rename_head(key[len(wrapper) :]) or key[len(wrapper) :]
        if is_head(name):
            others[name] = value
        else:
            unknown.append(key)
    linear = _linear_weights(named, others)
    if _are_transposed(linear, path, default=paddle):
        for where, name in linear:
            where[name] = where[name].t().contiguous()
    if paddle:  # Paddle's BatchNorm does not count batches, torch's does
        for name in [name for name in named if name.endswith('.running_var')]:
            named.setdefault(f'{name[: -len("running_var")]}num_batches_tracked', torch.tensor(0))
    wrong = [
        name
        for name, value in named.items()
        if not value.is_floating_point() and not name.endswith('.num_batches_tracked')
    ]
    if wrong:
        raise CheckpointError(
            f'{path} stores weights as {named[wrong[0]].dtype} ({some(wrong)}), expected floating point: give the '
            'checkpoint from before the quantization'
        )
    check_finite({**named, **others}, path)
    parts = {name.split('.')[0] for name in others}
    task = next((task for task, heads in TASKS.items() if parts.intersection(heads)), 'backbone')
    source = 'Paddle' if paddle else 'published' if match.published else 'OpenMMLab'
    return Recognized(match.network, source, task, weights, named, others, tuple(unknown), prefix)


def check_finite(state_dict: Mapping[str, Any], path: str) -> None:
    """Reject weights with NaN or infinity, which a diverged training writes.

    Raises:
        CheckpointError: Names the first such tensors.
    """
    wrong = [
        key
        for key, value in state_dict.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not _is_finite(value)
    ]
    if wrong:
        raise CheckpointError(
            f'{path} contains NaN or infinite values in {len(wrong)} of {len(state_dict)} tensors ({some(wrong)}): '
            'the training had diverged; use an earlier checkpoint'
        )


def _is_finite(value: Tensor) -> bool:
    # PyTorch does not test floats of 8 bits.
    return bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())


def arch_of(backbone: Mapping[str, Tensor]) -> Dict[str, Tuple[int, ...]]:
    """Return depths and channels of the stages in a backbone's state dict (our names).

    The channels are those of a norm in the first block of each stage; 0 if there is no norm.
    """
    blocks: Dict[str, Set[str]] = {}
    widths: Dict[str, int] = {}
    for key, value in backbone.items():
        found = BLOCK.match(key)
        if found is None:
            continue
        stage, block = found.groups()
        blocks.setdefault(stage, set()).add(block)
        if block == '0' and re.fullmatch(r'norm\d*\.weight', key[found.end() :]) and value.ndim == 1:
            widths.setdefault(stage, value.shape[0])
    stages: List[str] = []
    while str(len(stages)) in blocks:
        stages.append(str(len(stages)))
    return {
        'depths': tuple(len(blocks[stage]) for stage in stages),
        'channels': tuple(widths.get(stage, 0) for stage in stages),
    }


def kind_of(backbone: Mapping[str, Tensor], network: Type[Backbone]) -> str:
    """Return what distinguishes networks of equal depths and channels, such as ``'static'``; usually empty."""
    return names_of(network).kind(backbone)


def name_arch(backbone: Mapping[str, Tensor], network: Type[Backbone]) -> str:
    """Return the variant's name (``'b12'``, ``'tiny (static)'``), or its depths and channels as text."""
    found, kind = arch_of(backbone), kind_of(backbone, network)
    kind = f' ({kind})' if kind else ''
    for name, row in getattr(network, 'arch_settings', {}).items():
        if all(tuple(row.get(key, ())) == value for key, value in found.items()):
            return f'{name}{kind}'
    return f'with depths {found["depths"]} and channels {found["channels"]}{kind}'


def reference_names(network: Type[Backbone]) -> Tuple[str, ...]:
    """Return the names in a complete state dict of a network: of its first variant, or as built without arguments.

    A network that cannot be built this way has none: timm may be missing, or an argument be required.
    """
    return _names_in(network, next((variant.name for variant in variants_of(network)), None))


def _all_names(network: Type[Backbone]) -> Set[str]:
    """Return the parameter names of all variants of a network, and of the network built without arguments."""
    variants: List[Optional[str]] = [None, *(variant.name for variant in variants_of(network))]
    return {name for variant in variants for name in _names_in(network, variant)}


def _names_in(network: Type[Backbone], variant: Optional[str]) -> Tuple[str, ...]:
    """Build a network, or a variant of it, once and without allocating anything, and return the names in it."""
    if (network, variant) not in _built:
        _built[network, variant] = _build_names(network, variant)
    return _built[network, variant]


def _build_names(network: Type[Backbone], variant: Optional[str]) -> Tuple[str, ...]:
    build: Callable[[], torch.nn.Module] = network if variant is None else VARIANTS[variant].build
    try:
        # Building must not change the state of the random number generators of the calling program.
        with torch.random.fork_rng(devices=[]), torch.device('meta'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return tuple(build().state_dict())
    except Exception:  # whatever a constructor in another package raises
        return ()


class _Match(NamedTuple):
    """Match between a network's names and those in a file.

    Attributes:
        network (type): The network.
        published (bool): Whether these are its published names.
        names (dict[str, str]): Names in the file and ours, of those that are explained.
        unexplained (int): Number of the file's names that the network lacks, apart from those of heads and ignored
            ones.
        size (int): Number of name patterns of the network.
    """

    network: Type[Backbone]
    published: bool
    names: Dict[str, str]
    unexplained: int
    size: int

    @property
    def rank(self) -> Tuple[int, int]:
        """Sort key: matches that explain more names first, then those with fewer patterns."""
        return -len(self.names), self.size


def _find_network(keys: Sequence[str], matches: List[_Match], path: str, backbone: Optional[torch.nn.Module]) -> _Match:
    """Return the best match of the names in a file.

    ``matches`` are those by the rows of published names. If none explains all names, networks are built to get their
    parameter names.

    Raises:
        CheckpointError: No network matches, or two match equally well.
    """
    if all(match.unexplained for match in matches):
        matches = _matches(keys, backbone, rows_suffice=False)
    if not matches:
        names = ', '.join(network.__name__ for network in _candidates(backbone))
        raise CheckpointError(
            f'{path} has nothing in common with {names}: its {len(keys)} tensors are named {some(keys)}. Give a '
            'checkpoint of one of these networks, or import the package that registers its network (--import, or '
            'custom_imports in the config)'
        )
    best = [match for match in matches if match.rank == min(match.rank for match in matches)]
    for match in best:  # the class that is loaded, or the one that all others are subclasses of
        if match.network is type(backbone) or all(issubclass(other.network, match.network) for other in best):
            return match
    names = ' and '.join(match.network.__name__ for match in best)
    raise CheckpointError(
        f'{path} fits {names}, whose parameters have the same names: load it with init_cfg of the backbone'
    )


def _candidates(backbone: Optional[torch.nn.Module]) -> List[Type[Backbone]]:
    candidates = list_networks()
    if isinstance(backbone, Backbone) and type(backbone) not in candidates:
        candidates.append(type(backbone))
    return candidates


def _matches(keys: Sequence[str], backbone: Optional[torch.nn.Module], rows_suffice: bool) -> List[_Match]:
    """Return a match for each network, by published and by our names, that explains most of the names in blocks."""
    matches = []
    for network in _candidates(backbone):
        own = tuple(backbone.state_dict()) if backbone is not None and type(backbone) is network else ()
        for published in (False, True) if names_of(network).rows else (False,):
            match = _explain(keys, network, published, own, rows_suffice)
            if match is not None:
                matches.append(match)
    return matches


def list_networks() -> List[Type[Backbone]]:
    """Return the networks that a file may be of: those with variants first, then other subclasses of ``Backbone``."""

    def visit(parent: Type[Backbone]) -> Iterator[Type[Backbone]]:
        for child in parent.__subclasses__():
            yield child
            yield from visit(child)

    # A subclass without a constructor of its own, such as a deprecated name, has the same parameters.
    others = [network for network in visit(Backbone) if '__init__' in vars(network)]
    found = dict.fromkeys([*(variant.network for variant in VARIANTS.values()), *others])
    # Classes without names cannot be built; they are base classes.
    return [network for network in found if names_of(network).rows or reference_names(network)]


def names_of(network: Type[Backbone]) -> PublishedNames:
    """Return a network's published names; empty ones if it has none."""
    return network.published_names or PublishedNames()


def _explain(
    keys: Sequence[str], network: Type[Backbone], published: bool, own: Sequence[str], rows_suffice: bool
) -> Optional[_Match]:
    """Map the names of a file to ours; ``None`` if too few names in blocks are the network's.

    Args:
        keys (Sequence[str]): Keys of the file.
        network (type): The network that it may be of.
        published (bool): Use the network's published names instead of ours.
        own (Sequence[str]): Parameter names of the backbone to load, if it is of this class.
        rows_suffice (bool): Use only the rows of published names of a network that has such rows, without building
            it. If not, the network is built, and names that are equal in its published files need no row.
    """
    rows = names_of(network).rows_for(keys)
    pairs = {(row.published if published else row.ours, row.ours) for row in rows}
    known: Set[Tuple[str, str]] = set()
    if not rows or not rows_suffice:
        everything = {*own, *(reference_names(network) if rows else _all_names(network))}
        known = {(pattern, pattern) for name in everything for pattern in _patterns(name)}
    rename, keep, in_block = renamer(pairs), renamer(known), _block_finder(pairs | known)
    # The names in blocks first, because they rule out most networks.
    blocks = [key for key in keys if in_block(key)]
    found = {key: rename(key) or keep(key) for key in blocks}
    if not blocks or sum(found[key] is not None for key in blocks) < SHARE_OF_BLOCKS * len(blocks):
        return None
    found.update((key, rename(key) or keep(key)) for key in keys if key not in found)
    names = {key: name for key in keys if (name := found[key]) is not None}
    is_ignored = renamer((pattern, pattern) for pattern in names_of(network).ignored)
    unexplained = sum(key not in names and not is_head(key) and is_ignored(key) is None for key in keys)
    return _Match(network, published, names, unexplained, len(pairs | known))


def _patterns(name: str) -> Iterator[str]:
    """Yield patterns that match a name, and the corresponding names in a network of other depths or outputs."""
    pattern = '.'.join('*' if part.isdigit() else part for part in name.split('.'))
    norm = re.match(r'norm\d+\.', pattern)
    if norm is None:
        yield pattern
    else:
        yield from (f'norm{i}.{pattern[norm.end() :]}' for i in range(MAX_OUTPUTS))


def _block_finder(pairs: Set[Tuple[str, str]]) -> Callable[[str], Optional[Match[str]]]:
    """Build a function that checks whether a name in the file belongs to a block."""
    roots = set()
    for pattern, ours in pairs:
        block, parts = BLOCK.match(ours), pattern.split('.')
        stars = [i for i, part in enumerate(parts) if part == '*']
        if block is not None and 0 < block.group().count('*') <= len(stars):
            root = parts[: stars[block.group().count('*') - 1] + 1]
            roots.add(r'\.'.join('[^.]*' if part == '*' else re.escape(part) for part in root))
    return re.compile(rf'(?:{"|".join(sorted(roots))})\.' if roots else '(?!)').match


def _find_prefix(
    tensors: Mapping[str, Tensor], path: str, prefix: Optional[str], backbone: Optional[torch.nn.Module]
) -> Tuple[str, List[_Match]]:
    """Find the prefix of the backbone's names: ``prefix``, or one after which the names of some network follow.

    Returns:
        tuple: The prefix, and the matches of the names after it by the rows of published names.

    Raises:
        CheckpointError: No name begins with ``prefix``, or the names of a network follow several prefixes.
    """
    if prefix is None:
        prefix = 'backbone.' if any(key.startswith('backbone.') for key in tensors) else ''
        matches = _matches_after(tensors, prefix, backbone)
        if not matches:
            fitting = {each: found for each in _prefixes(tensors) if (found := _matches_after(tensors, each, backbone))}
            if len(fitting) > 1:
                raise CheckpointError(
                    f'{path} has weights of a network after each of {", ".join(map(repr, fitting))}: give one of them '
                    'as prefix'
                )
            for prefix, matches in fitting.items():
                return prefix, matches
        return prefix, matches
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    if not any(key.startswith(prefix) for key in tensors):
        raise CheckpointError(
            f'no tensor name in {path} begins with {prefix!r}; the names begin with '
            f'{sorted({key.split(".")[0] for key in tensors})}: give one of these as prefix, or none'
        )
    return prefix, _matches_after(tensors, prefix, backbone)


def _prefixes(tensors: Mapping[str, Tensor]) -> List[str]:
    """Return possible prefixes of a network's names: each ends before a part that is not a number."""
    found: Dict[str, None] = {}
    for key in tensors:
        parts = key.split('.')
        for i in range(1, min(len(parts), MAX_PREFIX + 1)):
            if parts[i - 1].isdigit():
                break
            found['.'.join(parts[:i]) + '.'] = None
    return list(found)


def _matches_after(tensors: Mapping[str, Tensor], prefix: str, backbone: Optional[torch.nn.Module]) -> List[_Match]:
    """Return the matches of the names after a prefix, by the rows of published names."""
    keys = [_torch_leaf(key[len(prefix) :]) for key in tensors if key.startswith(prefix)]
    return _matches(keys, backbone, rows_suffice=True)


def _torch_leaf(key: str) -> str:
    stem, _, leaf = key.rpartition('.')
    return f'{stem}.{PADDLE_LEAVES[leaf]}' if leaf in PADDLE_LEAVES else key


def _linear_weights(backbone: Dict[str, Tensor], others: Dict[str, Tensor]) -> List[Tuple[Dict[str, Tensor], str]]:
    """Return dict and name of the linear weights, the only ones with two dimensions."""
    result = [(backbone, name) for name in backbone if name.endswith('.weight')]
    if 'head.fc.weight' in others:
        result.append((others, 'head.fc.weight'))
    return [(where, name) for where, name in result if where[name].ndim == 2]


def _are_transposed(linear: Sequence[Tuple[Dict[str, Tensor], str]], path: str, default: bool) -> bool:
    """Return whether linear weights are (in, out), as Paddle stores them.

    Determined by their biases, except for square weights; ``default`` if undetermined.
    """
    votes: Dict[str, bool] = {}
    for where, name in linear:
        rows, columns = where[name].shape
        bias = where.get(name[: -len('weight')] + 'bias')
        if bias is not None and rows != columns and bias.numel() in (rows, columns):
            votes[name] = bias.numel() == columns
    if len(set(votes.values())) > 1:
        ordinary, transposed = ([name for name in votes if votes[name] is kind] for kind in (False, True))
        raise CheckpointError(
            f'{path} has linear weights stored (out, in), such as {ordinary[0]}, and others stored '
            f'(in, out), such as {transposed[0]}, expected all of one kind: transpose one of the two kinds in the file'
        )
    return next(iter(votes.values()), default)
