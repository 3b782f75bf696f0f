"""Try trained models in the browser: drop an image, see the prediction, FCViT's similarity maps, and the time.

For example:

    python tools/app.py configs/detection/mask_rcnn_fcvit_b12_coco.py detector.pth
    python tools/app.py --runs work_dirs

Everything stays on this machine: the page listens on 127.0.0.1 and loads nothing from elsewhere.
"""

import argparse
from contextlib import suppress
from typing import Optional, Sequence

from command_line import (
    MAX_UPLOAD_BYTES,
    MAX_UPLOAD_PIXELS,
    UserError,
    check_device,
    check_fraction,
    command_parser,
    run_command,
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('models', nargs='*', metavar='CONFIG CHECKPOINT', help='pairs of a config and a checkpoint')
    parser.add_argument('--runs', help='folder of tools/train.py runs (work_dirs); the best checkpoint of each is used')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (default: %(default)s, which only this machine can reach; there is no password)',
    )
    parser.add_argument('--port', type=int, help='port to listen on (default: 7860, or the next free port)')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum detection score to draw (default: %(default)s)'
    )
    parser.add_argument(
        '--max-megabytes',
        type=float,
        default=MAX_UPLOAD_BYTES / 2**20,
        metavar='MIB',
        help='largest accepted image file (default: %(default)g)',
    )
    parser.add_argument(
        '--max-megapixels',
        type=float,
        default=MAX_UPLOAD_PIXELS / 1e6,
        metavar='N',
        help='largest accepted image, in millions of pixels (default: %(default)g)',
    )
    args = parser.parse_args(argv)
    check_fraction('--score-thr', args.score_thr)
    for name in ('max_megabytes', 'max_megapixels'):
        if not 0 < getattr(args, name) < float('inf'):
            raise UserError(f'--{name.replace("_", "-")} is {getattr(args, name):g}, expected a number above 0')
    return args


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger

    from fcvit_mm.app.models import Predictor, find_models
    from fcvit_mm.app.page import build_page, import_gradio
    from fcvit_mm.app.server import build_server, open_port

    check_device(args.device)
    import_gradio()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    import matplotlib

    matplotlib.use('Agg')  # images are drawn in a thread of the server
    predictor = Predictor(find_models(args.models, args.runs), args.device, args.score_thr)
    # Load the first model now, so that an error is reported here.
    predictor.load(next(iter(predictor.models)))
    max_bytes = int(args.max_megabytes * 2**20)
    page = build_page(predictor, max_bytes, int(args.max_megapixels * 1e6))
    server = build_server(page, max_bytes)
    listening = open_port(args.host, args.port)
    host, port = listening.getsockname()[:2]
    address = f'http://{f"[{host}]" if ":" in host else host}:{port}'
    print(f'{", ".join(predictor.models)}\nOpen {address} in a browser; Ctrl+C ends it.', flush=True)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


if __name__ == '__main__':
    run_command(main, parse_args)
