"""Kinds of data sets, and the loading steps of their pipelines."""

from typing import Any, Callable, Dict, List, Optional


def is_url(path: Any) -> bool:
    """Check whether a path is a URL."""
    return isinstance(path, str) and '://' in path


def is_remote(dataset: Any, prefixes: Dict[str, str]) -> bool:
    """Check whether a data set is read from remote storage."""
    backend = (getattr(dataset, 'backend_args', None) or {}).get('backend', 'local')
    return backend != 'local' or any(map(is_url, [dataset.data_root, dataset.ann_file, *prefixes.values()]))


def is_coco(dataset: Any, api: Any) -> bool:
    """Check whether a data set's annotations are in COCO's format for objects (LVIS's and panoptic ones are others)."""
    if api is None:
        return False
    from mmdet.datasets.api_wrappers import COCO, COCOPanoptic

    return isinstance(api, COCO) and not isinstance(api, COCOPanoptic)


def is_xml(dataset: Any) -> bool:
    """Check whether a data set of mmdet has one XML file per image, as VOC has."""
    return hasattr(dataset, 'ann_subdir') and hasattr(dataset, 'sub_data_root')


def is_segmentation(dataset: Any) -> bool:
    """Check whether a data set is one of mmseg's."""
    return hasattr(dataset, 'seg_map_suffix') and hasattr(dataset, 'reduce_zero_label')


def needs_maps(dataset: Any) -> bool:
    """Check whether the pipeline of a data set of mmseg loads segmentation maps."""
    loading = [type(step).__name__ for step in transforms_of(dataset) if type(step).__name__.startswith('Load')]
    return not loading or any('Image' not in name for name in loading)


def has_folders(dataset: Any) -> bool:
    """Check whether a data set is one of mmpretrain's with one folder per class."""
    return bool(getattr(dataset, 'with_label', False)) and not dataset.ann_file


def transforms_of(dataset: Any) -> List[Any]:
    """Return the steps of a data set's pipeline."""
    return list(getattr(getattr(dataset, 'pipeline', None), 'transforms', None) or ())


def loading_steps(dataset: Any) -> Optional[Callable[[dict], dict]]:
    """Return a function that runs the loading steps of a data set's pipeline; ``None`` if it has none."""
    steps = [step for step in transforms_of(dataset) if type(step).__name__.startswith('Load')]
    images = [step for step in steps if 'Image' in type(step).__name__]
    if not images:
        return None
    maps = [step for step in steps if getattr(step, 'with_seg', False) and step not in images]

    def read(info: dict) -> dict:
        # Steps append to lists, as mmseg's LoadAnnotations does to seg_fields: the data set loads its entry again.
        results: Any = {key: list(value) if isinstance(value, list) else value for key, value in info.items()}
        for step in [*images, *(maps if info.get('seg_map_path') else ())]:
            results = step(results)
            if results is None:
                raise ValueError('nothing was loaded')
        return results

    return read
