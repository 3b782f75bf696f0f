"""Count the warnings about misspelt keys for the stock configs of mmdet, mmseg and mmpretrain: false alarms.

    python dev/check_misspelt.py [--without mask_head ...]

reads every config of the installed libraries; --without sets parts of the models to None first, as users do.
"""

import importlib
from pathlib import Path
from typing import Any, List, Sequence

from mmengine.config import Config

from fcvit_mm.engine.config import TASKS
from fcvit_mm.errors import command_parser, run_command
from fcvit_mm.preflight import misspelt_arguments, misspelt_settings


def without_parts(node: Any, names: Sequence[str]) -> None:
    """Set the entries of these names, at any depth, to ``None``."""
    for key, child in list(node.items()) if isinstance(node, dict) else ():
        if key in names:
            node[key] = None
        else:
            without_parts(child, names)
    for child in node if isinstance(node, (list, tuple)) else ():
        without_parts(child, names)


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument('--without', nargs='+', default=[], metavar='PART', help='parts of models, such as mask_head')
    parser.add_argument('--every', type=int, default=1, metavar='N', help='read every N-th config only')
    args = parser.parse_args()
    warnings: List[str] = []
    for module in (misspelt_arguments, misspelt_settings):
        module.log_warning = warnings.append  # type: ignore[attr-defined]
    for library in TASKS:
        package = importlib.import_module(library)
        importlib.import_module(f'{library}.utils').register_all_modules(init_default_scope=False)
        read = 0
        paths = sorted((Path(package.__path__[0]) / '.mim' / 'configs').rglob('*.py'))
        for path in [path for path in paths if '_base_' not in path.parts][:: args.every]:
            try:
                cfg = Config.fromfile(path)
            except Exception as error:  # configs of projects that are not installed
                print(f'{path.name} is not read: {type(error).__name__}')
                continue
            cfg.default_scope = cfg.get('default_scope') or library
            without_parts(cfg.get('model'), args.without)
            read += 1
            found = len(warnings)
            misspelt_arguments.report_misspelt_arguments(cfg)
            misspelt_settings.report_misspelt_settings(cfg)
            for text in warnings[found:]:
                print(f'{path.name}: {text}')
        print(f'{library}: {read} configs')
    print(f'{len(warnings)} warnings')


if __name__ == '__main__':
    run_command(main)
