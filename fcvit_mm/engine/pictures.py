"""Pictures that do not decode: found before training where that is cheap, named where it is not."""
from pathlib import Path
from typing import Callable, Optional

from mmengine.hooks import Hook

from ..registry import HOOKS

#: What the inferencers of the three libraries take for a picture.
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')


def picture_problem(path) -> Optional[str]:
    """Why a picture cannot be used, in one line; ``None`` if it decodes completely.

    OpenCV, which the pipelines decode with, fills what a truncated JPEG lacks with grey; Pillow notices.
    """
    from PIL import Image
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            return f'{path} is empty (0 bytes): copy it again or remove it from the data set'
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        return f'{path} does not exist: complete the data set, or correct data_root, data_prefix or the annotations'
    except Exception as error:
        # Broad, because damaged bytes make decoders fail in any way there is.
        return f'{path} does not decode ({type(error).__name__}: {error}): copy it again or remove it from the data set'
    return None


class NamedErrors:
    """A data pipeline whose errors name the sample's picture.

    Args:
        pipeline (callable): Takes and returns a dict.
    """

    def __init__(self, pipeline: Callable) -> None:
        self.pipeline = pipeline

    def __getattr__(self, name):
        # `pipeline` itself is looked up here only while this is being unpickled.
        if name == 'pipeline':
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __call__(self, data: dict):
        name = data.get('img_path', 'a sample without img_path')
        try:
            return self.pipeline(data)
        except Exception as error:
            paths = [data[key] for key in ('img_path', 'seg_map_path') if data.get(key)]
            problems = [problem for problem in map(picture_problem, paths) if problem]
            raise RuntimeError(f'data pipeline failed at {name}: {"; ".join(problems) or error}') from error


@HOOKS.register_module()
class NamePictureHook(Hook):
    """Lets an error in a data pipeline name the picture, as OpenCV's own errors do not. Tools add it by themselves."""

    def before_run(self, runner) -> None:
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            # The private attribute: the property would build a loader that this run does not need.
            loop = getattr(runner, f'_{name.split("_")[0]}_loop', None)
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            wrap_pipelines(dataset)


def wrap_pipelines(dataset) -> None:
    """Put :class:`NamedErrors` around the pipelines of a data set and of those that it wraps."""
    if dataset is None:
        return
    pipeline = getattr(dataset, 'pipeline', None)
    if callable(pipeline) and not isinstance(pipeline, NamedErrors):
        dataset.pipeline = NamedErrors(pipeline)
    inner = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]
    for each in inner:
        wrap_pipelines(each)
