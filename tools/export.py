"""Export a classifier, segmentor or detector, or the backbone and neck of any model, to ONNX or to files of PyTorch.

The file is run on odd sizes and other batches and compared with PyTorch before it gets its name; then size and speed of
both are printed.
"""

import argparse
import json
from typing import Optional, Sequence

from command_line import (
    EXPORT_FORMATS,
    EXPORT_PARTS,
    EXPORT_PREPROCESSING,
    add_config_options,
    command_parser,
    run_command,
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', help='checkpoint file, or published:NAME')
    parser.add_argument('--format', required=True, choices=EXPORT_FORMATS, help='what to write')
    parser.add_argument(
        '--out', required=True, metavar='FILE', help='the file: .onnx, .pt2 (torch_export) or .pt (torchscript)'
    )
    parser.add_argument(
        '--part',
        default='model',
        choices=EXPORT_PARTS,
        help="model: a classifier's scores, a segmentor's "
        "logits, a detector's boxes, scores, labels and masks; backbone: its stages' features; neck: the features "
        'behind the neck (default: model)',
    )
    parser.add_argument(
        '--preprocess',
        default='beside',
        choices=EXPORT_PREPROCESSING,
        help='where pixels are normalised: inside, in the graph, which then takes uint8 images as OpenCV reads them; '
        'beside it, by whoever runs it (default: beside)',
    )
    parser.add_argument(
        '--compare',
        metavar='FOLDER',
        help="also compare the file with PyTorch on the folder's images, read by the config's test pipeline",
    )
    parser.add_argument('--optimize', action='store_true', help='export the model as optimize_for_inference makes it')
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        default=[],
        metavar='PIXELS',
        help='height and width at which speed is measured, or one number; the file takes any',
    )
    parser.add_argument(
        '--rounds', type=int, default=10, help='how often each is timed, 0 for not at all (default: 10)'
    )
    parser.add_argument(
        '--int8',
        metavar='FOLDER',
        help="also write FILE_int8.onnx in 8 bits, calibrated on the folder's images, and measure how far it drifts",
    )
    parser.add_argument(
        '--labelled',
        metavar='FOLDER',
        help='measure that on these images, one folder per class, and the accuracy too (default: on those of --int8)',
    )
    parser.add_argument(
        '--calibration-images',
        type=int,
        default=100,
        metavar='NUMBER',
        help='how many images of --int8 to use (default: 100)',
    )
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help="evaluate the model and the files by the config's test data and evaluator, and print the metrics of each",
    )
    parser.add_argument(
        '--openvino', action='store_true', help='run the ONNX files in OpenVINO, too: their drift, metrics and speed'
    )
    parser.add_argument('--json', metavar='FILE', help='write all figures there')
    add_config_options(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from fcvit_mm.export.exporter import export_model, format_report
    from fcvit_mm.files import write_atomic

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
