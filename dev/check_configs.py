"""Check the configs: each one parses, registers this package, and is listed in its folder's table and metafile."""

import re
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

from mmengine.config import Config
from mmengine.fileio import load

from fcvit_mm.errors import UserError, command_parser, run_command

ROOT = Path(__file__).resolve().parents[1]
#: Configs for generated data sets, which have no published figures and are therefore not in the tables.
GENERATED = '_shapes'


def leaves(root: Path) -> List[Path]:
    """Return the paths of the leaf configs, including the trials."""
    return sorted(path for path in (root / 'configs').rglob('*.py') if '_base_' not in path.parts)


def problems_of_config(path: Path) -> Iterator[str]:
    """Yield what is wrong with one config, as text."""
    if not re.fullmatch(r'[a-z0-9]+(_[a-z0-9]+)+\.py', path.name):
        yield 'is not named method_backbone_dataset.py'
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        # Broad, because a config is a program and may fail in any way.
        yield f'does not load: {type(error).__name__}: {error}'
        return
    if cfg.get('custom_imports', {}).get('imports') != ['fcvit_mm']:
        yield "lacks custom_imports=dict(imports=['fcvit_mm'])"
    elif 'custom_imports' in path.read_text():
        yield 'sets custom_imports itself: it belongs in _base_/default_runtime.py only'
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        yield 'lacks auto_scale_lr=dict(base_batch_size=...)'
    for key in ('load_from', 'resume'):
        if cfg.get(key):
            yield f'sets {key}={cfg[key]!r}, which is for the command line'


def problems_of_folder(folder: Path, root: Path) -> Iterator[str]:
    """Yield where the table, the metafile and the configs of a folder disagree."""
    configs = {path.stem for path in folder.glob('*.py') if not path.stem.endswith(GENERATED)}
    linked = set(re.findall(r'\]\(([a-z0-9_]+)\.py\)', (folder / 'README.md').read_text()))
    models = load(folder / 'metafile.yml')['Models']
    indexed = {Path(model['Config']).stem for model in models}
    for name, where in ((linked, 'README.md'), (indexed, 'metafile.yml')):
        for missing in sorted(configs - name):
            yield f'{where} lacks {missing}.py'
        for left in sorted(name - configs):
            yield f'{where} names {left}.py, which is not there'
    for model in models:
        if model['Config'] != f'{folder.relative_to(root)}/{model["Name"]}.py':
            yield f'metafile.yml: {model["Name"]} has Config {model["Config"]}'


def find_problems(root: Path) -> List[str]:
    """Return what is wrong with the configs under a folder, one line each."""
    found = [f'{path.relative_to(root)} {problem}' for path in leaves(root) for problem in problems_of_config(path)]
    for metafile in (root / imported for imported in load(root / 'model-index.yml')['Import']):
        folder = metafile.parent
        found += [f'{folder.relative_to(root)}: {problem}' for problem in problems_of_folder(folder, root)]
    return found


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Check all configs; print that they are in order.

    Raises:
        UserError: Some are not in order; the message lists the problems.
    """
    parser = command_parser(__doc__)
    parser.add_argument('--root', type=Path, default=ROOT, help="the project's root (default: %(default)s)")
    root = parser.parse_args(argv).root
    found = find_problems(root)
    if found:
        raise UserError('\n'.join([f'{len(found)} problems:', *found]))
    print(f'{len(leaves(root))} configs are in order')


if __name__ == '__main__':
    run_command(main)
