"""Options shared by several commands, and their choices.

A command reads its arguments before the slow imports (``tools/command_line.py``). Everything that its parser needs is
therefore defined here and in :mod:`fcvit_mm.errors`, which import only the standard library; the subpackages use the
same tables.
"""

import argparse
import importlib
import os
import os.path as osp
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type

from .errors import CommandParser, UserError

#: Launchers of the processes of a run.
LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


class LauncherVariables(NamedTuple):
    """Environment variables that a launcher sets for each process, and its name in messages.

    Attributes:
        rank (str): Number of the process.
        processes (str): Number of processes.
        local_rank (str): Number of the process on its machine.
        command (str): How it is started.
        only_here (str): Variable that nothing else sets.
        started (str): Number of processes, where ``only_here`` is set.
    """

    rank: str
    processes: str
    local_rank: str
    command: str
    only_here: str
    started: str


LAUNCHER_VARIABLES = {
    'pytorch': LauncherVariables(
        *('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'torchrun (tools/dist_train.sh)', 'TORCHELASTIC_RUN_ID', 'WORLD_SIZE')
    ),
    # Commands outside of srun, in a batch script, see SLURM_NTASKS too.
    'slurm': LauncherVariables(
        *('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'srun (tools/slurm_train.sh)'),
        *('SLURM_STEP_NUM_TASKS', 'SLURM_STEP_NUM_TASKS'),
    ),
    'mpi': LauncherVariables(
        *('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
        *('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_SIZE'),
    ),
}


class ExportFormat(NamedTuple):
    """A kind of file: its suffix, its runtime, and the packages that it needs besides torch."""

    suffix: str
    runtime: str
    packages: Tuple[str, ...] = ()


EXPORT_FORMATS = {
    'onnx': ExportFormat('.onnx', 'ONNX Runtime', ('onnx', 'onnxscript', 'onnxruntime')),
    'torch_export': ExportFormat('.pt2', 'torch.export'),
    'aot_inductor': ExportFormat('.pt2', 'AOTInductor'),
    'torchscript': ExportFormat('.pt', 'TorchScript'),
}
#: Parts of a model that can be exported.
EXPORT_PARTS = ('model', 'neck', 'backbone')
#: Where pixels are normalized: before the graph is called, as in OpenMMLab's own exports, or in the graph.
EXPORT_PREPROCESSING = ('beside', 'inside')
#: Files of predicted classes.
TABLES = ('csv', 'parquet')
#: Names of the methods of class activation maps, and the classes of pytorch-grad-cam.
CAM_METHODS = {
    'gradcam': 'GradCAM',
    'gradcam++': 'GradCAMPlusPlus',
    'xgradcam': 'XGradCAM',
    'hirescam': 'HiResCAM',
    'layercam': 'LayerCAM',
    'eigencam': 'EigenCAM',
}
#: Layouts of generated data sets, with the default numbers and size of images.
DATASET_KINDS: Dict[str, Dict[str, int]] = {
    'imagenet': dict(num_train=1600, num_val=200, size=64),
    'coco': dict(num_train=400, num_val=80, size=192),
    'ade20k': dict(num_train=400, num_val=80, size=192),
}
#: Limits of an upload to the web demo: above any camera's JPEG, and below what a decompression bomb decodes to.
MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000


#: Spaces that neither begin nor end a value or an element of a list, and what stands for each while it is parsed.
_INNER_SPACES = re.compile(r'(?<=[^\s,(\[]) +(?=[^\s,)\]])')
_PLACEHOLDER = '\0'


class _KeyValues(argparse.Action):
    """Action that collects ``KEY=VALUE``, which MMEngine's action parses after argument validation."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs='+', metavar='KEY=VALUE', **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for value in values:
            if '=' not in value:
                raise UserError(f'{option_string} is {value}, expected KEY=VALUE, such as model.head.num_classes=5')
            key, _, text = value.partition('=')
            if re.search(r'(^|[\[(,\s])(dict\(|\{)', text.strip('\'"')):
                raise UserError(
                    f'{option_string} {value}: the command line takes numbers, words and lists of them, no dicts. Give '
                    f'each value of a dict its own option ({key}.type=NAME), and put a list of dicts into a config '
                    "file that begins with _base_ = 'CONFIG'"
                )
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), *values])

    def finish(self, texts: List[str]) -> Dict[str, Any]:
        """Return the options as a dict."""
        from .dependencies import require

        require('mmengine')
        from mmengine.config import DictAction

        found = argparse.Namespace()
        kept = [_keep_spaces(text) for text in texts]
        try:
            DictAction(self.option_strings, self.dest)(argparse.ArgumentParser(), found, kept)
        except AssertionError as error:
            option = self.option_strings[0]
            message = _restore_spaces(str(error))
            raise UserError(f'{option}: {message}: close every bracket, and quote the option') from error
        return {key: _restore_spaces(value) for key, value in getattr(found, self.dest).items()}


def _keep_spaces(text: str) -> str:
    """Replace spaces within a value of ``KEY=VALUE``, such as a path, because MMEngine's action removes them."""
    key, _, value = text.partition('=')
    return f'{key}={_INNER_SPACES.sub(lambda spaces: _PLACEHOLDER * len(spaces[0]), value)}'


def _restore_spaces(value: Any) -> Any:
    """Undo :func:`_keep_spaces` in a parsed value, also in nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_restore_spaces, value))
    return value.replace(_PLACEHOLDER, ' ') if isinstance(value, str) else value


def add_key_values(parser: CommandParser, option: str, help: str) -> None:
    """Add an option that takes one or more ``KEY=VALUE``, may be repeated, and returns a dict.

    Args:
        parser (CommandParser): Parser of the command.
        option (str): Name of the option.
        help (str): Help text of the option.
    """
    parser.add_argument(option, action=_KeyValues, help=help)


def add_config_options(parser: CommandParser, examples: str = 'model.head.num_classes=5') -> None:
    """Add ``--cfg-options`` to a command, which changes the config.

    Args:
        parser (CommandParser): Parser of the command.
        examples (str): Examples for the help text.
    """
    add_key_values(parser, '--cfg-options', f'change the config: {examples}')


def check_config(path: str) -> None:
    """Raise an error for a missing config file, or another kind of file, before anything is imported.

    Raises:
        UserError: It does not exist, is a folder, or its name is that of a checkpoint.
    """
    if osp.isdir(path):
        raise UserError(f'config {path} is a folder: give a file in it')
    if not osp.isfile(path):
        meant = f'did you mean {path}.py? The' if osp.isfile(f'{path}.py') else 'the'
        raise UserError(
            f'config {path} does not exist: {meant} configs are in configs/classification, configs/detection '
            'and configs/segmentation of the project'
        )
    if osp.splitext(path)[1] in ('.pth', '.pt', '.ckpt', '.safetensors', '.onnx'):
        raise UserError(f'config is {path}, the name of a checkpoint: give the config file (.py) first')


def check_fraction(option: str, value: float) -> None:
    """Raise an error for a value that is no fraction.

    Args:
        option (str): Name of the option, for the message.
        value (float): Value of the option.

    Raises:
        UserError: It is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise UserError(f'{option} is {value:g}, expected a number from 0 to 1')


def check_device(device: Optional[str]) -> None:
    """Raise an error for a device that PyTorch cannot use on this machine, before anything is loaded.

    Args:
        device (str, optional): Device, such as ``'cpu'`` or ``'cuda:0'``; ``None``: chosen later.

    Raises:
        UserError: There is no such device, or it is one without data, such as ``'meta'``.
    """
    if device is None:
        return
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'--device {device} cannot be used here ({reason}): use --device cpu, or a device that PyTorch supports on '
            'this machine'
        ) from error


class _ImportModule(argparse.Action):
    """Action that imports a module after argument validation, to register its networks."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), values])

    def finish(self, names: List[str]) -> List[str]:
        """Import them."""
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(
                    f'--import {name}: {error}: install the package, or add its folder to PYTHONPATH'
                ) from error
        return names


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and ``--local_rank``, which :func:`pass_local_rank` evaluates."""
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='launcher that started the processes')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')


def pass_local_rank(args: argparse.Namespace) -> argparse.Namespace:
    """Store ``--local_rank`` in the environment, where MMEngine reads it, check ``--launcher``; return the arguments.

    Raises:
        UserError: A launcher started several processes, but ``--launcher`` does not name it: each would run alone. Or
            ``--launcher`` names one that did not start this process.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.launcher == 'none':
        check_single_process(os.environ)
    else:
        check_started_by(args.launcher, os.environ)
    return args


def check_started_by(launcher: str, env: Mapping[str, str], error: Type[UserError] = UserError) -> None:
    """Raise an error if a launcher did not start this process.

    Args:
        launcher (str): One of :data:`LAUNCHER_VARIABLES`.
        env (dict): The environment.
        error (type): Type of the error.
    """
    names = LAUNCHER_VARIABLES[launcher]
    missing = [name for name in names[:3] if not env.get(name)]
    if missing:
        raise error(
            f'--launcher {launcher} needs {", ".join(missing)} in the environment: start the processes with '
            f'{names.command}, or omit --launcher for a single process'
        )


def check_single_process(env: Mapping[str, str]) -> None:
    """Raise an error if a launcher started this process together with others.

    Args:
        env (dict): The environment.
    """
    for launcher, names in LAUNCHER_VARIABLES.items():
        number = env.get(names.started, '1') if names.only_here in env else '1'
        if number not in ('0', '1'):
            raise UserError(
                f'{names.command} started {number} processes, but --launcher is none: each would run alone and write '
                f'the same files. Add --launcher {launcher}; for a single process, start one, without '
                f'{names.only_here} in the environment'
            )


def add_import_option(parser: CommandParser) -> None:
    """Add ``--import`` to a command that reads no config and therefore no ``custom_imports``."""
    parser.add_argument(
        '--import', action=_ImportModule, metavar='MODULE', help='module that registers networks of another package'
    )
