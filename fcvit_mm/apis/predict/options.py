"""Options of a prediction run, and the check that they can be combined."""

from typing import NamedTuple, Optional

from ...dependencies import MissingPackageError, how_to_install
from ...options import TABLES, check_device, check_fraction
from .results import PredictionError

#: Option -> the only task that it is for.
OF_TASK = dict(
    score_thr='detection', draw_score_thr='detection', coco='detection', top='classification', table='classification'
)
#: Option -> the option without which it has no effect.
WITHOUT_EFFECT = dict(overlap='tile', draw_score_thr='draw')


class Options(NamedTuple):
    """Options of a prediction run.

    Attributes:
        batch_size (int): Maximum number of images, or tiles, per forward pass.
        workers (int): Number of processes that read images; may be 0.
        amp (bool): Mixed precision.
        optimize (bool): Predict with the model after :func:`~fcvit_mm.optimize_for_inference`.
        tta (bool): Test-time augmentation as defined in the config.
        tile (int, optional): Side of the tiles in pixels; ``None``: predict complete images.
        overlap (float): Overlap of neighbouring tiles, as a fraction of their size.
        score_thr (float): Minimum detection score to write.
        top (int): Number of classes written per image, for classification; 0 for all.
        table (str): File format of classification results: ``'csv'`` or ``'parquet'``.
        coco (str, optional): COCO file with the image and category ids, for detection.
        features (bool): Also write the backbone's last output, averaged over its positions.
        draw (bool): Also write images with the predictions drawn on them.
        draw_score_thr (float): Minimum detection score to draw.
        device (str, optional): Default: a GPU if there is one.
        launcher (str): Launcher that started the processes.
    """

    batch_size: int = 1
    workers: int = 2
    amp: bool = False
    optimize: bool = False
    tta: bool = False
    tile: Optional[int] = None
    overlap: float = 0.2
    score_thr: float = 0.0
    top: int = 5
    table: str = 'csv'
    coco: Optional[str] = None
    features: bool = False
    draw: bool = False
    draw_score_thr: float = 0.3
    device: Optional[str] = None
    launcher: str = 'none'


def check_options(options: Options, task: str) -> None:
    """Reject options that cannot be used or combined, before anything is loaded.

    Raises:
        UserError: Names the options and the solution.
        MissingPackageError: They need a package that is not installed.
    """
    for name, owner in OF_TASK.items():
        if _is_set(options, name) and task != owner:
            raise PredictionError(f'{_option(name)} is for {owner}, but the config is for {task}: omit {_option(name)}')
    for name, other in WITHOUT_EFFECT.items():
        if _is_set(options, name) and not _is_set(options, other):
            raise PredictionError(
                f'{_option(name)} has no effect without {_option(other)}: add {_option(other)}, or omit {_option(name)}'
            )
    if options.batch_size < 1 or options.workers < 0:
        raise PredictionError(
            f'--batch-size is {options.batch_size} and --workers is {options.workers}, expected a '
            'batch size of at least 1 and at least 0 workers'
        )
    if options.top < 0:
        raise PredictionError(f'--top is {options.top}, expected a number of classes, or 0 for all')
    check_fraction('--score-thr', options.score_thr)
    check_fraction('--draw-score-thr', options.draw_score_thr)
    check_device(options.device)
    if options.tile is not None:
        if task == 'classification':
            raise PredictionError(
                '--tile: a classifier makes one prediction per image: cut the images first, or omit --tile'
            )
        if options.tile < 32 or not 0 <= options.overlap < 1:
            raise PredictionError(
                f'--tile is {options.tile} and --overlap is {options.overlap}, expected a tile of at least 32 '
                'pixels and an overlap from 0 to below 1'
            )
        if options.features or options.tta:
            raise PredictionError('--tile cannot be combined with --features or --tta: omit one of them')
        _require('sahi', '--tile')
    if options.features and options.tta:
        raise PredictionError(
            '--features cannot be combined with --tta, which runs the backbone several times: omit one of them'
        )
    if options.table not in TABLES:
        raise PredictionError(f'--format is {options.table}, expected one of {", ".join(TABLES)}')
    if options.table == 'parquet':
        _require('pyarrow', '--format parquet')


def _is_set(options: Options, name: str) -> bool:
    return getattr(options, name) != Options._field_defaults[name]


def _option(name: str) -> str:
    """Return the name of an option of the command."""
    return '--format' if name == 'table' else f'--{name.replace("_", "-")}'


def _require(package: str, option: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise MissingPackageError(f'{option} needs {package}: {how_to_install("predict")}') from error
