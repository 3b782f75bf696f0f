"""Record outputs of mmcv's compiled operators, for the tests of their replacements.

Needs an mmcv with its compiled operators (``MMCV=compiled make setup``). Writes ``tests/data/mmcv_ops.npz``.
"""

import io
import sys
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import write_atomic
from fcvit_mm.mmcv_ext import is_compiled

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'tests' / 'data' / 'mmcv_ops.npz'


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run every case of tests/mmcv_cases.py and write the results."""
    parser = command_parser(__doc__)
    parser.add_argument('--out', type=Path, default=OUT, help='default: %(default)s')
    args = parser.parse_args(argv)
    if not is_compiled():
        raise UserError('this mmcv has no compiled operators to record: build one with MMCV=compiled make setup')
    sys.path.insert(0, str(ROOT / 'tests'))
    from mmcv_cases import CASES

    arrays = {
        f'{name}/{index}': tensor.detach().numpy()
        for name, case in CASES.items()
        for index, tensor in enumerate(case())
    }
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomic(args.out, file.getvalue())
    print(f'{args.out}: {len(CASES)} cases')


if __name__ == '__main__':
    run_command(main)
