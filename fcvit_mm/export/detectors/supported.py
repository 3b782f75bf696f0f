"""The heads and settings that are supported; others are refused by name."""

from typing import Any, NoReturn, Optional

from ...engine.config import type_name
from ...errors import UserError

#: Detectors that can be exported completely, for messages.
WHOLE = (
    'Faster, Mask, Cascade and Cascade Mask R-CNN, RetinaNet, FCOS, ATSS, RTMDet and RTMDet-Ins, and detectors whose '
    'heads predict as theirs do'
)
#: Supported keys of an ``nms`` in a test_cfg. (``split_thr`` only selects the order of computation.)
NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr', 'max_num'}
#: Names of the methods with which heads predict, for one image and for all images.
STEPS = ('_predict_by_feat_single', 'predict_by_feat')


def defining_class(instance: Any, method: str) -> Optional[str]:
    """Return the name of the class that defines a method of an object; ``None`` if undefined."""
    return next((kind.__name__ for kind in type(instance).__mro__ if method in vars(kind)), None)


def refuse(part: Any, why: str) -> NoReturn:
    """Raise an error that names the component that cannot be exported, and the alternatives.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f'{type(part).__name__} {why}, which cannot be exported as one graph. Complete detectors are supported for '
        f'{WHOLE}. For others use --part neck (the feature maps for their heads) or --part backbone'
    )


def checked_cfg(head: Any, cfg: Any) -> Any:
    """Return a head's test_cfg after checking that its steps are supported."""
    name = type(head).__name__
    if not cfg or not cfg.get('nms') or 'max_per_img' not in cfg:
        raise UserError(
            f'the test_cfg of {name} lacks nms or max_per_img: the graph needs both, set them by --cfg-options'
        )
    nms = cfg['nms']
    kind = type_name(nms) or 'nms'
    unknown = sorted(set(nms) - NMS_KEYS)
    if kind != 'nms' or unknown:
        what = f'type {kind!r}' if kind != 'nms' else ', '.join(unknown)
        raise UserError(
            f"the test_cfg of {name} has nms with {what}, for which ONNX has no operator: export with type='nms' and "
            'an iou_threshold, by --cfg-options'
        )
    return cfg
