"""Classes and labels: the same in all splits, in the checkpoint and in the heads."""

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

from ..engine.wrapped import find_inner_model
from .annotations import normalize_name
from .log import log_warning, shorten

HEADS = (
    'head',
    'bbox_head',
    'roi_head',
    'decode_head',
    'auxiliary_head',
    'semantic_head',
    'panoptic_head',
    'panoptic_fusion_head',
)
#: Settings that are numbers of classes, and the key of a panoptic data set's ``metainfo`` that lists these classes.
#: Heads for instances have the classes of things.
NUMBERS = {
    'num_classes': 'thing_classes',
    'num_things_classes': 'thing_classes',
    'num_stuff_classes': 'stuff_classes',
}


class LabelRule(NamedTuple):
    """The reading of labels in the segmentation maps of a data set.

    Attributes:
        reduced (bool): Whether label 0 is ignored and the others are numbered from 0 (``reduce_zero_label``).
        root (str): Folder of the data.
        full (bool): Whether the checked files contain a label equal to the number of classes, as they do only where
            classes are numbered from 1.
    """

    reduced: bool
    root: str
    full: bool


def split_problems(splits: Dict[str, Sequence[str]]) -> List[str]:
    """Check that all splits have the same classes in the same order: labels are their numbers."""
    problems: List[str] = []
    if not splits:
        return problems
    first, *others = splits
    for other in others:
        here, there = list(splits[first]), list(splits[other])
        if here == there:
            continue
        lacking = [name for name in here if name not in there]
        added = [name for name in there if name not in here]
        texts = [f'lacks {shorten(lacking)}'] * bool(lacking) + [f'adds {shorten(added)}'] * bool(added)
        same = [(one, two) for one in lacking for two in added if normalize_name(one) == normalize_name(two)][:1]
        texts += [
            f'writes {one!r} as {two!r}, in other spaces, capitals or Unicode form (NFC or NFD)' for one, two in same
        ]
        problems.append(
            f'{other} {" and ".join(texts) or "has another order"}: its classes are {shorten(there)}, those of '
            f'{first} {shorten(here)}, so the same label means different classes. Give both the same folders '
            '(including empty ones), or the same metainfo=dict(classes=[...])'
        )
    return problems


def trained_class_problems(trained: Dict[str, Sequence[str]], splits: Dict[str, Sequence[str]]) -> List[str]:
    """Check that classes have the labels that a checkpoint was trained with; other names may be translations."""
    problems: List[str] = []
    for path, learned in trained.items():
        for where, names in splits.items():
            if len(names) != len(learned):
                continue  # which the check of the heads reports
            moved = [
                f'{name!r} has label {names.index(name)}, but {learned.index(name)} in the checkpoint'
                for name in names
                if name in learned and names.index(name) != learned.index(name)
            ]
            if moved:
                problems.append(
                    f'{where} numbers its classes differently ({shorten(names)}) from {path} ({shorten(learned)}): '
                    f'{shorten(moved, 2)}. Give the data set metainfo=dict(classes=...) and annotations in the order '
                    'of the checkpoint'
                )
            elif list(names) != list(learned):
                log_warning(
                    f'{where} has other classes ({shorten(names)}) than {path} ({shorten(learned)}): predictions are '
                    'assigned by number, not by name'
                )
    return problems


def zero_label_problems(rules: Dict[str, LabelRule]) -> List[str]:
    """Check that all splits have the same ``reduce_zero_label``, unless their files number classes differently."""
    problems: List[str] = []
    first = next(iter(rules), '')
    for other, rule in rules.items():
        given = rules[first]
        if rule.reduced == given.reduced or (rule if rule.reduced else given).full:
            continue
        text = (
            f'{other} has reduce_zero_label={rule.reduced}, {first} {given.reduced}: the same label in the files means '
            'different classes. Give both data sets, and their LoadAnnotations, the same reduce_zero_label'
        )
        if rule.root == given.root:
            problems.append(text)
        else:  # files in another folder, which may number the classes in another way
            log_warning(f'{text}, unless their segmentation maps number the classes differently')
    return problems


class ClassNumber(NamedTuple):
    """A number of classes in the model's config.

    Attributes:
        name (str): Dotted name of the setting.
        value (int): Its value.
        kind (str): A value of :data:`NUMBERS`.
    """

    name: str
    value: int
    kind: str


def class_numbers(cfg: dict) -> Iterator[ClassNumber]:
    """Yield the numbers of classes of the heads that learn those of the data, and of label-mixing augmentations."""

    def visit(node: Any, name: str) -> Iterator[ClassNumber]:
        if isinstance(node, dict):
            for key, kind in NUMBERS.items():
                # Semantic heads of detectors (HTC) learn other maps, with classes of their own.
                if isinstance(node.get(key), int) and not (key == 'num_classes' and name.endswith('.semantic_head')):
                    yield ClassNumber(f'{name}.{key}', node[key], kind)
            for key, child in node.items():
                yield from visit(child, f'{name}.{key}')
        elif isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                yield from visit(child, f'{name}.{index}')

    place, model = find_inner_model(cfg.get('model') or {})
    own = model.get('data_preprocessor')
    preprocessor = own or cfg.get('data_preprocessor') or {}
    # mmpretrain's preprocessor reads the number for one-hot labels only, such as those for Mixup and CutMix.
    if preprocessor.get('to_onehot') or preprocessor.get('batch_augments') or model.get('train_cfg'):
        name = f'{place}.data_preprocessor' if own else 'data_preprocessor'
        yield from visit({'num_classes': preprocessor.get('num_classes')}, name)
    for key in HEADS:
        if key in model:
            yield from visit(model[key], f'{place}.{key}')


def learned_classes(numbers: Sequence[ClassNumber]) -> Optional[int]:
    """Return the maximum number of classes that the model can learn; ``None`` if no head says so."""
    things, stuff = (
        max((each.value for each in numbers if (each.kind == 'stuff_classes') == is_stuff), default=None)
        for is_stuff in (False, True)
    )
    return None if things is None else things + (stuff or 0)


def class_number_problems(
    classes: Sequence[str], metainfo: dict, numbers: Sequence[ClassNumber], trained: Dict[str, Sequence[str]]
) -> List[str]:
    """Compare the numbers of classes of the model with those of a data set.

    Args:
        classes (sequence of str): Classes of the data set.
        metainfo (dict): Its ``metainfo``; a panoptic one has ``thing_classes`` and ``stuff_classes``, too.
        numbers (sequence of ClassNumber): From :func:`class_numbers`.
        trained (dict): Checkpoint that is tested or resumed -> names of its classes.
    """
    lists = {'thing_classes': classes, 'stuff_classes': ()}
    panoptic = 'thing_classes' in metainfo
    if panoptic:
        lists = {kind: metainfo.get(kind) or () for kind in lists}
        if [*lists['thing_classes'], *lists['stuff_classes']] != list(classes):
            return [
                f'metainfo.classes ({shorten(classes)}) is not thing_classes '
                f'({shorten(lists["thing_classes"])}) followed by stuff_classes ({shorten(lists["stuff_classes"])}), '
                'as mmdet numbers the classes: correct all three in metainfo of the data set'
            ]
    problems = []
    for kind, names in lists.items():
        wrong = [each for each in numbers if each.kind == kind and each.value != len(names)]
        if wrong:
            of_kind = f'{kind.partition("_")[0]} ' if panoptic or kind == 'stuff_classes' else ''
            listed = f' ({shorten(names)})' if names else ''
            found = ', '.join(f'{each.name} is {each.value}' for each in wrong)
            options = ' '.join(f'{each.name}={len(names)}' for each in wrong)
            advice = f'--cfg-options {options}, or correct metainfo.classes of the data set'
            value = wrong[0].value
            if value < len(names) and all(each.value == value for each in wrong):
                # Fewer than the data set has by default, so somebody set the number.
                advice = f'give the data set metainfo=dict(classes=...) with {value} names, or --cfg-options {options}'
            for path, learned in trained.items():
                if all(each.value == len(learned) for each in wrong):
                    advice = (
                        f'{path} was trained with {len(learned)} classes ({shorten(learned)}): give the data set the '
                        'same in this order, with metainfo=dict(classes=[...]) or, in a folder for each class, with '
                        'empty folders for those without images'
                    )
            problems.append(f'{found}, but the data set has {len(names)} {of_kind}classes{listed}: {advice}')
    return problems
