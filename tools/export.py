"""Export a classifier, segmentor or detector, or the backbone and neck of any model, to ONNX or to files of PyTorch.

The file is compared with PyTorch on odd sizes and other batches before it is renamed; then size and speed of both are
printed.
"""

import argparse
import json
import os.path as osp
from typing import Optional, Sequence

from command_line import (
    EXPORT_FORMATS,
    EXPORT_PARTS,
    EXPORT_PREPROCESSING,
    UserError,
    add_config_options,
    command_parser,
    run_command,
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', help='checkpoint file, published:NAME, or a URL')
    parser.add_argument('--format', required=True, choices=EXPORT_FORMATS, help='file format')
    parser.add_argument(
        '--out',
        required=True,
        metavar='FILE',
        help='file to write: .onnx, .pt2 (torch_export, aot_inductor) or .pt (torchscript)',
    )
    parser.add_argument(
        '--part',
        default='model',
        choices=EXPORT_PARTS,
        help="part of the model to export. model: a classifier's scores, a segmentor's logits, a detector's boxes, "
        'scores, labels and masks; backbone: the features of its stages; neck: the features after the neck '
        '(default: model)',
    )
    parser.add_argument(
        '--preprocess',
        default='beside',
        choices=EXPORT_PREPROCESSING,
        help='where pixels are normalized. inside: in the graph, which then takes uint8 images as OpenCV reads them; '
        'beside: outside the graph, by the program that runs it (default: beside)',
    )
    parser.add_argument(
        '--compare',
        metavar='FOLDER',
        help="also compare the file with PyTorch on the images in this folder, read by the config's test pipeline",
    )
    parser.add_argument('--optimize', action='store_true', help='export the model after optimize_for_inference')
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        default=[],
        metavar='PIXELS',
        help='height and width at which speed is measured, or one number for both; the file takes any size',
    )
    parser.add_argument('--rounds', type=int, default=10, help='number of timing rounds; 0: no timing (default: 10)')
    parser.add_argument(
        '--int8',
        metavar='FOLDER',
        help='also write FILE_int8.onnx in 8 bits, calibrated on the images in this folder, and measure how much its '
        'outputs differ',
    )
    parser.add_argument(
        '--labelled',
        metavar='FOLDER',
        help='measure the difference, and the accuracy, on these images, one folder per class (default: the difference '
        'only, on the images of --int8)',
    )
    parser.add_argument(
        '--calibration-images',
        type=int,
        metavar='NUMBER',
        help='number of --int8 images used for calibration (default: 100)',
    )
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help="evaluate the model and the files with the config's test data and evaluator, and print the metrics",
    )
    parser.add_argument(
        '--openvino',
        action='store_true',
        help='also run the ONNX files in OpenVINO and report their differences, metrics and speed',
    )
    parser.add_argument('--json', metavar='FILE', help='also write all results to this JSON file')
    add_config_options(parser)
    args = parser.parse_args(argv)
    others = [osp.realpath(path) for path in (args.config, args.checkpoint, args.out)]
    if args.json and osp.realpath(args.json) in others:
        raise UserError(f'--json is {args.json}, the name of another file of this command: give another name')
    return args


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.export.exporter import export_model, format_report
    from fcvit_mm.files import check_writable, write_atomic

    if args.json:
        check_writable(args.json)
    report = export_model(
        args.config,
        args.checkpoint,
        args.out,
        args.format,
        args.part,
        args.optimize,
        args.size,
        args.rounds,
        args.int8,
        args.labelled,
        args.calibration_images,
        args.cfg_options,
        args.preprocess,
        args.compare,
        args.evaluate,
        args.openvino,
    )
    print(format_report(report))
    if args.json:
        write_atomic(args.json, (json.dumps(report, indent=2) + '\n').encode())


if __name__ == '__main__':
    run_command(main, parse_args)
