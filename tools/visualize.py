"""Draw the predictions of a classifier, detector or segmentor on an image, a folder of images or a video."""

import argparse
from typing import Optional, Sequence

from command_line import add_config_options, check_device, check_fraction, command_parser, run_command


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, published:NAME, or a URL')
    parser.add_argument('input', help='image, folder of images, or video')
    parser.add_argument(
        '--out-dir', required=True, help='folder for the images (PNG) or the video (MP4) with predictions drawn on them'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum detection score to draw (default: %(default)s)'
    )
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='opacity of the segmentation overlay (default: %(default)s)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    add_config_options(parser)
    args = parser.parse_args(argv)
    check_fraction('--score-thr', args.score_thr)
    check_fraction('--opacity', args.opacity)
    return args


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.apis.draw import build_drawer, draw_images, draw_video
    from fcvit_mm.apis.preprocessing import image_reader
    from fcvit_mm.engine.config import load_config
    from fcvit_mm.files import check_writable_folder
    from fcvit_mm.images import ImageError, find_inputs

    check_device(args.device)
    check_writable_folder(args.out_dir)
    images, video = find_inputs(args.input)
    cfg = load_config(args.config, args.cfg_options)
    read = image_reader(cfg)
    draw = build_drawer(cfg, args.checkpoint, args.device, args.score_thr, args.opacity)
    if video:
        print(draw_video(draw, video, args.out_dir))
        return
    written, problems = draw_images(draw, images, args.out_dir, read)
    print('\n'.join(written))
    if problems:
        raise ImageError('\n  - '.join([f'{len(problems)} of {len(images)} images skipped:', *problems]))


if __name__ == '__main__':
    run_command(main, parse_args)
