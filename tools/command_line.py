"""The argument parser of the commands: ``--help`` and argument errors do not wait for PyTorch.

``import fcvit_mm`` registers networks and therefore imports PyTorch and MMEngine, which takes seconds. This module
imports two modules of the package, which only need the standard library, without importing the package. When a command
imports the package after parsing its arguments, Python reuses these two modules, so there is only one ``UserError`` and
one table of choices per option.

At module level, a command imports only this module and the standard library. It defines ``parse_args``, and ``main``,
which imports the rest, and ends with ``run_command(main, parse_args)``.
"""

import importlib.util
import sys
from importlib.machinery import PathFinder
from os.path import basename

PACKAGE = 'fcvit_mm'


def import_without_package(name: str) -> None:
    """Import a module of the package without importing the package, if that is installed and not imported yet."""
    package = None if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
    if package is None or name in sys.modules:
        return
    spec = PathFinder.find_spec(name, package.submodule_search_locations)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if PACKAGE not in sys.modules and importlib.util.find_spec(PACKAGE) is None:
    sys.exit(
        f'{basename(sys.argv[0])}: {sys.executable} has no package {PACKAGE}: activate the environment '
        '(source .venv/bin/activate), or install the package (pip install -e .)'
    )
for each in ('errors', 'options'):
    import_without_package(f'{PACKAGE}.{each}')

from fcvit_mm.errors import CommandParser, UserError, command_parser, run_command  # noqa: E402
from fcvit_mm.options import (  # noqa: E402
    CAM_METHODS,
    DATASET_KINDS,
    EXPORT_FORMATS,
    EXPORT_PARTS,
    EXPORT_PREPROCESSING,
    LAUNCHERS,
    MAX_UPLOAD_BYTES,
    MAX_UPLOAD_PIXELS,
    TABLES,
    add_config_options,
    add_import_option,
    add_key_values,
    add_launcher_options,
    check_config,
    check_device,
    check_fraction,
    pass_local_rank,
)

__all__ = [
    'CAM_METHODS',
    'CommandParser',
    'DATASET_KINDS',
    'EXPORT_FORMATS',
    'EXPORT_PARTS',
    'EXPORT_PREPROCESSING',
    'LAUNCHERS',
    'MAX_UPLOAD_BYTES',
    'MAX_UPLOAD_PIXELS',
    'TABLES',
    'UserError',
    'add_config_options',
    'add_import_option',
    'add_key_values',
    'add_launcher_options',
    'check_config',
    'check_device',
    'check_fraction',
    'command_parser',
    'pass_local_rank',
    'run_command',
]
