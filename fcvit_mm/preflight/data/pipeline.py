"""Running a few samples through the complete pipeline of a data set, wrappers included."""

from typing import Any, Dict, Iterator, List, Sequence, Tuple

from mmengine.registry import DATASETS

from ...engine.hooks.corrupt_samples import CorruptSampleError, failing_step, guard
from ...errors import UserError, origin
from ..contexts import quiet
from ..limits import TimeLimit, spread

#: Maximum number of samples that go through the pipeline before the start, and the seconds for them.
REHEARSED, REHEARSAL_SECONDS = 8, 1.5


def build_outer(dataset_cfg: dict, leaves: Iterator[Any], limit: TimeLimit) -> Any:
    """Build the wrappers around data sets that are built already.

    Args:
        dataset_cfg (dict): Config of the outermost data set.
        leaves (iterator): The data sets inside it, in the order of :func:`fcvit_mm.engine.config.leaf_datasets`.
        limit (TimeLimit): Time limit of all checks.

    Raises:
        Exception: A wrapper cannot be built; raised by its library.
    """

    def replaced(node: Any) -> Any:
        inner = {key: node[key] for key in ('dataset', '_dataset', 'datasets') if node.get(key)}
        if not inner:
            leaf = next(leaves)
            return dict(type=lambda: leaf)
        changed = dict(node)
        for key, value in inner.items():
            changed[key] = [replaced(each) for each in value] if isinstance(value, (list, tuple)) else replaced(value)
        return changed

    config = replaced(dataset_cfg)
    with limit.pause(), quiet():
        return DATASETS.build(config)


def try_pipeline(outer: Any, leaves: Sequence[Any], limit: TimeLimit, what: str) -> Tuple[List[str], Dict[int, Any]]:
    """Run a few samples through the complete pipeline of a data set, wrappers included.

    Args:
        outer (Dataset): The outermost data set.
        leaves (sequence): The data sets inside it that load samples.
        limit (TimeLimit): Time limit of all checks.
        what (str): Name of the data set in messages.

    Returns:
        tuple: Problems, and index -> sample as the pipeline packed it. Samples with corrupt files are in neither.
    """
    for leaf in leaves:
        guard(leaf, 0.0, False)
    load = outer.prepare_data if outer in leaves and hasattr(outer, 'prepare_data') else outer.__getitem__
    packed: Dict[int, Any] = {}
    problems: List[str] = []
    empty = 0
    try:
        for index in limit.part(spread(range(len(outer)), REHEARSED), REHEARSAL_SECONDS, f'{what}: samples loaded'):
            try:
                sample = load(index)
            except CorruptSampleError:
                continue
            except UserError as error:
                problems.append(str(error))
                break
            except Exception as error:
                # Broad, because pipelines may contain any code.
                problems.append(
                    f'sample {index} failed to load{failing_step(error)} ({type(error).__name__}: '
                    f'{origin(error).message}): check the pipeline and the annotations'
                )
                break
            if sample is None:
                empty += 1
            else:
                packed[index] = sample
    finally:
        for leaf in leaves:
            vars(leaf).pop('prepare_data', None)
    if empty and not packed and not problems:
        problems.append(f'the pipeline returned None for all {empty} samples: check its filtering steps')
    return problems, packed
