"""User errors and how commands report them."""

import argparse
import dis
import errno
import io
import linecache
import logging
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

#: Environment variable that makes commands show the traceback of every error, as ``--debug`` does, unless it is 0.
DEBUG_VARIABLE = 'FCVIT_MM_DEBUG'
#: Exit status after Ctrl-C (SIGINT), as shells report it.
INTERRUPTED = 130
PACKAGE = __name__.split('.')[0]
FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
#: Error numbers of the system for a full disk, an exhausted quota and a file above the size limit.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Advice for known errors: a pattern for ``TYPE: MESSAGE``, and the advice.
ADVICE = (
    (
        r"out of memory|can't allocate memory|^(OutOf)?MemoryError",
        'Out of memory: lower the batch size (train_dataloader.batch_size; --batch-size of tools/predict.py), in '
        'training set model.backbone.with_cp=True, or use --amp',
    ),
    (
        r'shared memory|Bus error|DataLoader worker .* (killed|exited)',
        "The data loader's workers ran out of memory: lower num_workers of the data loader (--workers of "
        'tools/predict.py), or give the machine more shared memory (docker run --shm-size)',
    ),
    (
        r'Expected to have finished reduction|parameters that were not used in producing loss',
        'Parameters get no gradient: tools/check.py CONFIG lists them and the correct out_indices. '
        'find_unused_parameters=True lets DistributedDataParallel search for them in every step',
    ),
    (
        r'to have \d+ channels, but got|mat1 and mat2 shapes cannot be multiplied',
        'Set in_channels of the neck and the heads to the channels of the outputs that they read, and that of the '
        'backbone to the channels of the images. '
        'tools/replace_backbone.py adapts stock configs of mmdet and mmseg to a backbone',
    ),
    (
        r'[Pp]rocess group has not been initialized',
        'FSDP, DeepSpeed and ZeroRedundancyOptimizer need a launcher, for a single process too: tools/dist_train.sh '
        'CONFIG 1',
    ),
    (
        r'Expected more than 1 value per channel',
        'A batch of one image gives BatchNorm a single value per channel: use a batch_size of 2 or more, and '
        'train_dataloader.drop_last=True, which omits an incomplete last batch',
    ),
    (
        r'image size in a batch should be the same|stack expects each tensor to be equal size',
        'Images of different sizes are in one batch: set batch_size=1 (for validation and test), or let the pipeline '
        'resize or crop all images to the same size',
    ),
    (
        r'The specified number of total steps is \d+',
        'Set total_steps of OneCycleLR to all steps of the training (epochs with by_epoch=True), or omit it; then '
        'continue with --resume',
    ),
    (
        r'base_wd should not be None',
        'paramwise_cfg multiplies the weight decay, so the optimizer needs one: set '
        'optim_wrapper.optimizer.weight_decay (0 for none)',
    ),
    (
        r'Target -?\d+ is out of bounds',
        'A label is neither a class (0 to num_classes - 1) nor the ignored label: correct the labels or num_classes '
        '(out_channels=1 needs CrossEntropyLoss(use_sigmoid=True)). '
        'In segmentation, give the data set, the heads, the metric (ignore_index) and model.data_preprocessor '
        '(seg_pad_val) the same ignored label',
    ),
    (
        r'assert .*num_levels',
        'The number of maps from the neck differs from the number of strides of anchors or points: give the '
        'anchor_generator (or prior_generator) of the head one stride for each map, or set num_outs of the neck',
    ),
    (
        r"has no attribute '(gt_)?masks'",
        'The model learns masks, but the pipeline returns none: set LoadAnnotations(with_mask=True), and use steps '
        'that keep masks (CachedMosaic and CachedMixUp instead of Mosaic and MixUp)',
    ),
    (
        r"'CrowdHumanDataset' object has no attribute 'extra_ann_file'",
        'Its ann_file must have train or val in its name, by which mmdet names a file with the sizes of the images',
    ),
    (
        r"'mix_results' in results",
        'This step combines several images: wrap the data set in MultiImageMixDataset, whose own pipeline contains the '
        'step, or use CachedMosaic or CachedMixUp',
    ),
    (
        r'too many indices for tensor of dimension 1',
        "If a loss has class_weight and avg_non_ignore=True, omit one of them: some versions of mmseg's "
        'CrossEntropyLoss cannot combine them',
    ),
    (
        r'selected index k out of range',
        'If it is a detector, it has fewer predictions than model.test_cfg.max_per_img: lower that to num_queries '
        '(times num_classes, if its loss_cls uses sigmoid). If it is a classifier, topk of a head or metric is more '
        'than num_classes',
    ),
    (
        r'Key \w+ is not in available keys',
        "albumentations 1.4 refuses what mmseg's Albu passes to it: pip install 'albumentations>=2', or "
        "'albumentations<1.4'",
    ),
    (
        r'device-side assert',
        'A label or an index is out of range. A GPU reports this late and without the place: run the command once on '
        'the CPU, where the message names it, with CUDA_VISIBLE_DEVICES=-1 in the environment',
    ),
    (
        r'no kernel image is available|invalid device function',
        'torch, or a package compiled for it such as mmcv, has no kernels for this GPU: install builds that support it',
    ),
    (
        r'Too many open files|received \d+ items of ancdata',
        'The processes have too many files open: raise the limit (ulimit -n), or lower num_workers of the data loader',
    ),
    (
        r'only one of size and size_divisor',
        'Set the inherited one to None: model.data_preprocessor.size=None or model.data_preprocessor.size_divisor=None',
    ),
    (
        r'must contain the key "type"',
        'A part of the config has no type. A list replaces the inherited one, so its items must be complete; to change '
        'a setting of each: bbox_head=[dict(each, num_classes=5) for each in _base_.model.roi_head.bbox_head]',
    ),
    (
        r"in child config cannot inherit from base .*<class 'list'> in base config",
        'What is a list in the inherited config must be a list of complete items here; to change a setting of each: '
        'bbox_head=[dict(each, num_classes=5) for each in _base_.model.roi_head.bbox_head]',
    ),
    (
        r'numpy\.dtype size changed|compiled using NumPy|numpy\.core\.multiarray failed to import',
        'The package was compiled for another version of NumPy: install a newer one (pip install --upgrade '
        '--force-reinstall --no-cache-dir PACKAGE), or numpy<2',
    ),
    (
        r'libGL\.so|libgthread|libSM\.so|libXext\.so',
        'OpenCV needs libraries of a display, which this machine lacks: pip uninstall opencv-python, then pip install '
        '--force-reinstall --no-deps opencv-python-headless; or install them (Debian: libgl1 and libglib2.0-0)',
    ),
    (
        r'operator torchvision::nms does not exist|undefined symbol',
        'The package was compiled for another version of torch: install matching versions (docs/troubleshooting.md)',
    ),
    (
        r'URLError|HTTPError|urlopen error|urllib3|Max retries exceeded',
        'The download failed: connect to the network, or download the file elsewhere and give its path. For weights of '
        'the backbone: --cfg-options pretrained=PATH, or pretrained=None for random weights',
    ),
    (
        r'is not in the .*registry',
        "Correct the type's name in the config, or let the config import the module that registers it: "
        "custom_imports=dict(imports=['MODULE'])",
    ),
    (
        r'unexpected keyword argument|missing \d+ required|multiple values for',
        'Correct the arguments of this type in the config; a dict inherited from _base_ keeps its other keys unless it '
        'has _delete_=True',
    ),
    (
        r"cfg should be a dict, ConfigDict or Config, but got <class 'str'>",
        'A part of the model, such as its backbone or a head, is text where its class expects a dict: dict(type=NAME), '
        'or on the command line model.backbone.type=NAME',
    ),
    (
        r'Package lvis is not installed',
        'pip install lvis (version 0.5.3 loads the data; with NumPy 1.24 or later its evaluation also needs np.float '
        'replaced by float in its file eval.py)',
    ),
    (
        r"(cannot import name .* from|No module named) 'mm(cv|det|seg|pretrain|engine)\.",
        'The code is for another version of that library, such as OpenMMLab 1.x (mmcv before 2, mmdet before 3, mmseg '
        'before 1): port it. What mmcv.runner had is in mmengine; BACKBONES and other registries of models are MODELS '
        'of mmdet.registry or mmseg.registry',
    ),
    (
        r'^(ImportError|ModuleNotFoundError)|Failed to import|is not installed',
        'Install the package, or add the folder of the module to the environment variable PYTHONPATH',
    ),
    (r'No space left on device|Disk quota exceeded', 'Free disk space, or write to another disk'),
)

#: Patterns of the libraries' start-up warnings and log lines that the user cannot influence.
NOISE = (
    r'faster_coco_eval is not installed',  # mmdet, of a metric of its own, which says so itself when it is used
    r'`isinstance\(treespec, LeafSpec\)` is deprecated',  # PyTorch, of its own export
    r'`create_unbacked_symint` is deprecated',  # torchvision, of its operators in an export
    r'DeprecationWarning: `num_anchors` is deprecated',  # mmdet, of its own heads
    r'To copy construct from a tensor, it is recommended',  # PyTorch, of mmdet's mask head
    r'The given buffer is not writable',  # PyTorch, of its own torch.export.load
    r'pkg_resources is deprecated',  # setuptools, of its use in packages that MMEngine imports
    r'"FileClient" will be deprecated',  # MMEngine, of its use in its own hooks
    r'"HardDiskBackend" is the alias',
    r'The prefix is not set in metric class',  # MMEngine, of the libraries' own metrics
    r'`reduce_zero_label` will be deprecated',  # mmseg, of the argument that its own configs give
    r'Default ``avg_non_ignore`` is False',  # mmseg, of its default
    r'Failed to add <class .*VisBackend',  # MMEngine, of a visualizer that keeps no files, as asked
    r'torch.meshgrid: in an upcoming release',  # PyTorch, of calls in the libraries
    r'Failed to search registry with scope "\w+" in the "function" registry',  # MMEngine, of its own collate functions
    r'Warning: The \w+ is out of bounds',  # MMEngine's visualizer, of boxes that end at the border of the image
    r'\S+ is skipped since its requires_grad=False',  # MMEngine, once for each frozen parameter
    r'The draw is False, it means that the hook for visualization will not take effect',
)


#: Maximum number of characters for the values of variables in a message.
VALUES_LENGTH = 80


class UserError(ValueError):
    """An error that the user can fix. The message names the value, the expected value and the solution."""


class LibraryError(UserError):
    """An error that a library raised from the user's data or config; made by :func:`library_error`."""


class Origin(NamedTuple):
    """The origin of an error, also in the worker process of a data loader.

    Attributes:
        kind (str): Name of the error's type.
        message (str): Its message; of an assertion without one, the line of code, and the values of its variables.
        package (str): Top-level package or module that raised it; ``'?'`` if that is not known.
    """

    kind: str
    message: str
    package: str


def origin(error: BaseException) -> Origin:
    """Determine the origin of an error."""
    found = _origin_in_worker(str(error))
    if found is not None:
        return found
    message = str(error)
    if isinstance(error, KeyError) and len(error.args) == 1 and ' ' in str(error.args[0]):
        message = str(error.args[0])  # a sentence, which KeyError would put into quotation marks
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, AssertionError) and not message and frames:
        message = _assertion(traceback.extract_tb(error.__traceback__)[-1], frames[-1].f_locals)
    package = '?'
    if frames:
        package = frames[-1].f_globals.get('__name__') or os.path.basename(frames[-1].f_code.co_filename) or '?'
    return Origin(type(error).__name__, message.strip(), package.split('.')[0])


def _assertion(place: traceback.FrameSummary, values: Mapping[str, Any]) -> str:
    """Return a failed assertion as code, and the values of those variables in it that are numbers or text."""
    end = getattr(place, 'end_lineno', None) or place.lineno  # since Python 3.11
    lines = [linecache.getline(place.filename, number).strip() for number in range(place.lineno or 0, (end or 0) + 1)]
    code = ' '.join(lines)
    names = dict.fromkeys(re.findall(r'(?<![\w.\'"])[A-Za-z_]\w*(?![\w(\'"])', code))
    shown = [f'{name}={values[name]!r}' for name in names if isinstance(values.get(name), (int, float, str))]
    return f'{code} ({", ".join(shown)})' if shown and len(', '.join(shown)) <= VALUES_LENGTH else code


def _origin_in_worker(text: str) -> Optional[Origin]:
    """Read the origin of a worker's error from the traceback in its message; ``None`` if there is no traceback."""
    if not re.match(r'Caught \w+ in .*\nOriginal ', text):
        return None
    lines = text.rstrip().splitlines()
    last_frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=0)
    rest = lines[last_frame + 1 :]
    code = ''
    while len(rest) > 1 and rest[0].startswith(' '):  # the line of code, and the marks below it
        code = code or rest[0].strip()
        del rest[0]
    kind, _, message = '\n'.join(rest).partition(': ')
    if kind == 'AssertionError' and not message:
        message = code
    path = lines[last_frame].partition('"')[2].partition('"')[0]
    parts = path.replace(os.sep, '/').rpartition('-packages/')[2] if '-packages/' in path else os.path.basename(path)
    package = PACKAGE if path.startswith(FOLDER) else parts.split('/')[0].partition('.')[0]
    return Origin(kind.rpartition('.')[2], message.strip(), package or '?')


def is_defect(error: BaseException) -> bool:
    """Check whether an error is a defect of this package, whose traceback must be shown.

    An error raised in this package is a defect. Exceptions are :class:`UserError`, and ``ValueError`` and ``TypeError``
    from a ``raise`` statement, with which networks and operations reject values.
    """
    if isinstance(error, UserError) or origin(error).package != PACKAGE:
        return False
    end = error.__traceback__
    while end is not None and end.tb_next is not None:
        end = end.tb_next
    if end is None or not end.tb_frame.f_code.co_filename.startswith(FOLDER):  # it comes from a worker
        return True
    refused = end.tb_frame.f_code.co_code[end.tb_lasti] == dis.opmap['RAISE_VARARGS']
    return not (refused and isinstance(error, (ValueError, TypeError)))


def advice_for(error: BaseException, otherwise: str = '') -> str:
    """Return the advice of :data:`ADVICE` for an error, or ``otherwise`` if there is none."""
    kind, message, _ = origin(error)
    found = f'{kind}: {message}' if message else kind
    return next((text for pattern, text in ADVICE if re.search(pattern, found)), otherwise)


def library_error(error: BaseException, doing: str, advice: str) -> LibraryError:
    """Wrap an error with the action that failed and advice.

    Args:
        error (BaseException): What was raised.
        doing (str): The action and its file: ``'training with CONFIG'``.
        advice (str): Advice if :data:`ADVICE` has none for this error.
    """
    kind, message, package = origin(error)
    found = f'{kind}: {message}' if message else kind
    return LibraryError(
        f'{doing} failed: {found} (raised in {package}). {advice_for(error, advice)}. To see the traceback: --debug, '
        f'or {DEBUG_VARIABLE}=1 in the environment'
    )


@contextmanager
def library_errors(doing: str, advice: str) -> Iterator[None]:
    """Convert errors raised by a library in this context to :class:`LibraryError`.

    Args:
        doing (str): See :func:`library_error`.
        advice (str): See :func:`library_error`.

    Raises:
        LibraryError: For any error except a :class:`UserError` and a defect of this package (:func:`is_defect`).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_defect(error):
            raise
        raise library_error(error, doing, advice) from error


def imported_package(error: BaseException) -> str:
    """Return the first package, other than this one, during whose import an error was raised; empty if none was."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == '<module>']
    # The code of a config file has no name.
    packages = [str(frame.f_globals.get('__name__') or '').partition('.')[0] for frame in frames]
    return next((package for package in packages if package not in ('', PACKAGE, '__main__')), '')


@contextmanager
def import_errors() -> Iterator[None]:
    """Convert errors of the import of another package, which is not installed correctly, to :class:`LibraryError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        package = imported_package(error)
        if not package:
            raise
        advice = f'Install the versions that {package} needs; requirements/constraints.txt lists those that were tested'
        raise library_error(error, f'importing {package}', advice) from error


def wants_traceback() -> bool:
    """Check whether the user asked for tracebacks: ``--debug``, or :data:`DEBUG_VARIABLE` in the environment."""
    return os.environ.get(DEBUG_VARIABLE, '0') not in ('', '0')


class _Debug(argparse.Action):
    """Action of ``--debug``: enables tracebacks, here and in the processes that the command starts."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        os.environ[DEBUG_VARIABLE] = '1'


class CommandParser(argparse.ArgumentParser):
    """Argument parser of a command that reports all mistakes before an argument needs a library.

    No argument may be empty: a path would be the current folder. After parsing, actions with a ``finish`` method
    convert their stored value.
    """

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments as ``argparse`` does, then finish them.

        Raises:
            UserError: An argument is empty, or raised by an action.
        """
        found = super().parse_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if value != action.default and '' in (value if isinstance(value, list) else [value]):
                name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
                raise UserError(f'{name} is empty: give a value, or omit it. In a shell script a variable may be unset')
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if hasattr(action, 'finish') and value is not None:
                setattr(found, action.dest, action.finish(value))
        return found


def command_parser(description: Optional[str]) -> CommandParser:
    """Build the argument parser of a command, with the option that all commands have: ``--debug``.

    Args:
        description (str): What the command does, usually its docstring; line breaks are kept.
    """
    parser = CommandParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--debug', action=_Debug, help=f'show the traceback of an error (so does {DEBUG_VARIABLE}=1)')
    return parser


def silence_libraries() -> None:
    """Suppress the libraries' start-up warnings (:data:`NOISE`) and debug messages.

    MMEngine's ``print_log`` without a logger prints messages of any level; the libraries use it, at level DEBUG, for
    data sets that they could not import.
    """
    for pattern in NOISE:
        warnings.filterwarnings('ignore', message=pattern)
    report_incomplete_logs()
    # Pillow logs an error for TIFF files that it cannot decode, although another reader is tried afterwards.
    logging.getLogger('PIL.TiffImagePlugin').setLevel(logging.CRITICAL)
    try:
        import mmengine.logging as library
    except ImportError:
        return
    original, call_original = library.print_log, library.MMLogger.callHandlers
    if not getattr(original, 'silences', False):

        @wraps(original)
        def print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
            if logger is not None or level > logging.DEBUG:
                original(msg, logger, level)

        print_log.silences = True  # type: ignore[attr-defined]
        library.print_log = print_log
    if not getattr(call_original, 'silences', False):

        @wraps(call_original)
        def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
            if record.levelno > logging.WARNING or not any(re.match(each, record.getMessage()) for each in NOISE):
                call_original(self, record)

        call_handlers.silences = True  # type: ignore[attr-defined]
        library.MMLogger.callHandlers = call_handlers


def report_incomplete_logs() -> None:
    """Make the logging module report a log file that a full disk leaves incomplete once, without tracebacks.

    Messages with file names that are not UTF-8 are logged with their bytes as ``\\udcf6`` and the like.
    """
    original, reported = logging.Handler.handleError, set()
    if getattr(original, 'names', False):
        return

    @wraps(original)
    def handle_error(self: logging.Handler, record: logging.LogRecord) -> None:
        error, path = sys.exc_info()[1], getattr(self, 'baseFilename', '')
        stream = getattr(self, 'stream', None)
        if isinstance(error, UnicodeEncodeError) and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
            self.emit(record)
        elif not path or not isinstance(error, OSError) or error.errno not in FULL:
            original(self, record)
        elif path not in reported:
            reported.add(path)
            print(f'{path} is incomplete: {error.strerror}. Free disk space, or write to another disk', file=sys.stderr)

    handle_error.names = True  # type: ignore[attr-defined]
    logging.Handler.handleError = handle_error  # type: ignore[method-assign]


def run_command(main: Callable[..., object], parse_args: Optional[Callable[[], object]] = None) -> None:
    """Run a command; a user error ends it with one message and exit status 1.

    ``--debug`` (:func:`command_parser`), or :data:`DEBUG_VARIABLE` in the environment, shows the traceback as well.
    Errors of any other kind are defects: they end the command with their traceback, as usual. Ctrl-C ends it with one
    message and the exit status that shells give. Start-up messages of libraries are suppressed
    (:func:`silence_libraries`), unless tracebacks are requested.

    Args:
        main (callable): The command.
        parse_args (callable, optional): Reads the arguments, before anything is imported for the command; ``main`` is
            then called with what it returns.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # of file names that are not UTF-8
    try:
        arguments = () if parse_args is None else (parse_args(),)
        if not wants_traceback():
            silence_libraries()
        with import_errors():
            main(*arguments)
    except UserError as error:
        if wants_traceback():
            traceback.print_exc()
        message = origin(error).message
        try:
            raise UserError(message) from None  # without the frames of the command
        except UserError as short:
            report_to_torchrun(short)
        sys.stdout.flush()
        sys.exit(f'{os.path.basename(sys.argv[0])}: {message}')
    except KeyboardInterrupt:
        if wants_traceback():
            raise
        sys.stdout.flush()
        print(f'{os.path.basename(sys.argv[0])}: interrupted', file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        report_to_torchrun(error)
        raise


def report_to_torchrun(error: Exception) -> None:
    """Record an error for torchrun, if it started this process, so that its report names the cause."""
    if os.environ.get('TORCHELASTIC_ERROR_FILE'):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        with suppress(OSError):  # a full disk must not hide the error itself
            get_error_handler().record_exception(error)
