"""Exporting a trained model to a file for other runtimes, and its report."""

import json
import os.path as osp
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from mmengine.config import Config
from torch import Tensor

from ..apis.load import Network, load_network
from ..apis.preprocessing import split_pipeline
from ..engine.config import leaf_datasets, library_of, load_config, task_or_library, type_name, walk
from ..errors import UserError, library_errors
from ..files import check_writable
from ..images import swap_channels
from ..inference import optimize_for_inference
from ..models.layers import count_parameters
from ..options import EXPORT_PREPROCESSING as PREPROCESSING
from ..version import __version__
from .comparison import time_in_turn
from .evaluation import PYTORCH, build_test_data, evaluate
from .formats import EXAMPLE, FORMATS, OPSET, check_format, runnable_shapes, write_export
from .parts import FromPixels, Part, Preparation
from .quantization import (
    Labelled,
    calibration_images,
    check_quantizer,
    labelled_images,
    measure_detections,
    measure_drift,
    quantize,
)
from .runtimes import Runnable, as_tuple, check_openvino, load_exported, load_openvino
from .selection import PARTS, take_part

#: Height and width at which speed is measured if the config's test pipeline does not crop.
SIZES = {'classification': (224, 224), 'detection': (800, 1280), 'segmentation': (512, 512)}
#: Default number of images on which an 8-bit file is calibrated.
CALIBRATION_IMAGES = 100
#: Description of the graph's input, by the kind of preprocessing.
INPUTS = {
    'beside': 'float32 ({batch}, {channels}, height, width), channels in channel_order, (pixel as loaded - mean) / std',
    'inside': 'uint8 ({batch}, height, width, {channels}), pixels as OpenCV loads them (BGR)',
}


def export_model(
    config: str,
    checkpoint: str,
    out: str,
    kind: str,
    part: str = 'model',
    optimize: bool = False,
    size: Sequence[int] = (),
    rounds: int = 10,
    int8: Optional[str] = None,
    labelled: Optional[str] = None,
    calibration: Optional[int] = None,
    options: Optional[dict] = None,
    preprocess: str = 'beside',
    compared: Optional[str] = None,
    evaluated: bool = False,
    openvino: bool = False,
) -> dict:
    """Export a trained model, compare the file with PyTorch, and measure both.

    Args:
        config (str): Config file of a classifier, detector or segmentor.
        checkpoint (str): A checkpoint trained with this config.
        out (str): The file to write.
        kind (str): A key of :data:`~fcvit_mm.export.formats.FORMATS`.
        part (str): One of :data:`~fcvit_mm.export.selection.PARTS`.
        optimize (bool): Export the model after :func:`fcvit_mm.optimize_for_inference`.
        size (Sequence[int]): Height and width at which speed is measured, or one number for both; empty for the
            config's.
        rounds (int): Number of timing rounds; 0: no timing.
        int8 (str, optional): Folder of images; an 8-bit file is then written beside ``out``, calibrated on them.
        labelled (str, optional): Folder with one folder of images per class, on which the 8-bit file is measured.
        calibration (int, optional): Number of images of ``int8`` to use. Default: :data:`CALIBRATION_IMAGES`.
        options (dict, optional): Changes to the config.
        preprocess (str): One of :data:`PREPROCESSING`.
        compared (str, optional): Folder of images on which the file is compared with PyTorch, in addition to random
            ones.
        evaluated (bool): Evaluate the model and the files with the config's test data and evaluator.
        openvino (bool): Also run ONNX files in OpenVINO.

    Returns:
        dict: The input of :func:`format_report`, serializable as JSON.

    Raises:
        UserError: Invalid arguments, a model or an operator that cannot be exported, or a file whose outputs differ
            from the model's. No file is left, unless only the 8-bit file cannot be written, or an image of
            ``labelled`` cannot be decoded.
        CheckpointError: The checkpoint belongs to another model.
        WriteError: The file cannot be written.
    """
    _check_arguments((config, checkpoint), out, kind, part, rounds, preprocess, evaluated, openvino)
    samples = _check_int8(kind, int8, labelled, calibration)
    small = osp.splitext(out)[0] + '_int8.onnx'
    if samples is not None:
        check_writable(small)
    real = [] if compared is None else calibration_images(compared, None, '--compare')
    cfg = load_config(config, options)
    sized, size = bool(size), speed_size(cfg, size)
    test_data = build_test_data(cfg) if evaluated else None
    network = load_network(config, checkpoint, 'cpu', options)
    module = take_part(network.model, network.task, part)
    if preprocess == 'inside':
        module = FromPixels(module, preparation(cfg, network))
    module = module.eval().requires_grad_(False)
    channels = network.in_channels
    if sized and rounds:
        with library_errors(
            f'running the model on an image of {size[0]}x{size[1]} (height, width; from --size)',
            'Give a size that it takes, or --rounds 0 for no timing',
        ):
            _in_pytorch(module)(module.inputs(1, channels, *size))
    shapes = runnable_shapes(module, channels, pad_divisor(cfg, module))
    tested = samples if labelled is None else _check_labelled(labelled, module, network, channels)
    read = input_reader(cfg, network, module)
    if (real or samples) and (library_of(cfg) is None or split_pipeline(cfg).geometry is None):
        raise UserError(
            '--int8 and --compare read images by the test_dataloader of a classifier, detector or segmentor, which '
            f'{config} lacks: add it, or omit these options'
        )
    for sample in (*real[:1], *(samples or ())[:1]):
        read(sample.path)  # so that an error comes before the longer steps
    metadata = describe(cfg, network, part, optimize, size, module)
    differences = write_export(
        module, out, kind, optimize, metadata, shapes, channels, (read(sample.path) for sample in real)
    )
    report = dict(
        config=config,
        checkpoint=checkpoint,
        task=network.task,
        part=part,
        format=kind,
        optimized=optimize,
        preprocess=preprocess,
        input=metadata['input'],
        channels=channels,
        torch=torch.__version__,
        file=out,
        file_bytes=osp.getsize(out),
        # The size of a checkpoint that contains only this part.
        pytorch_bytes=4 * count_parameters(module) + 4 * sum(buffer.numel() for buffer in module.buffers()),
        compared=compared,
        differences=[difference._asdict() for difference in differences],
    )
    in_pytorch = optimize_for_inference(module) if optimize else module
    files = {'': out}
    if samples is not None:
        files[', INT8'] = small
        with library_errors(f'writing {small}', f'{out} is complete. Calibrate on other images with --int8'):
            quantize(out, small, (read(sample.path) for sample in samples))
    runtimes = {FORMATS[kind].runtime + what: load_exported(path, kind) for what, path in files.items()}
    if openvino:
        runtimes.update({f'OpenVINO{what}': load_openvino(path) for what, path in files.items()})
    if samples is not None:
        report['int8'] = dict(
            file=files[', INT8'],
            file_bytes=osp.getsize(files[', INT8']),
            calibrated_on=len(samples),
            measured_on='the images of the calibration' if tested is samples else 'labelled images',
            **_measure(module, runtimes, tested or samples, read),
        )
    if test_data is not None:
        report['metrics'] = evaluate(cfg, network, module, test_data, runtimes)
    if rounds:
        images = module.inputs(1, channels, *size)
        timed = {PYTORCH: _in_pytorch(in_pytorch), **runtimes}
        times = time_in_turn({name: partial(run, images) for name, run in timed.items()}, rounds)
        report['speed'] = dict(size=list(size), rounds=rounds, threads=torch.get_num_threads(), ms_per_image=times)
    return report


def _check_arguments(
    inputs: Sequence[str],
    out: str,
    kind: str,
    part: str,
    rounds: int,
    preprocess: str,
    evaluated: bool,
    openvino: bool,
) -> None:
    """Raise an error for arguments of :func:`export_model` that are invalid for every model."""
    check_format(out, kind)
    check_writable(out)
    for given in inputs:
        if osp.exists(given) and osp.realpath(given) == osp.realpath(out):
            raise UserError(f'--out is {out}, which is read and would be replaced: give another name')
    if part not in PARTS:
        raise UserError(f'part is {part!r}, expected one of {", ".join(PARTS)}')
    if rounds < 0:
        raise UserError(f'--rounds is {rounds}, expected 0 or more')
    if preprocess not in PREPROCESSING:
        raise UserError(f'preprocess is {preprocess!r}, expected one of {", ".join(PREPROCESSING)}')
    if openvino:
        check_openvino(kind)
    if evaluated and part != 'model':
        raise UserError(f'--evaluate needs the complete model, not --part {part}: use --part model')


def _check_int8(
    kind: str, folder: Optional[str], labelled: Optional[str], number: Optional[int]
) -> Optional[List[Labelled]]:
    """Find the images to calibrate on; ``None`` if no 8-bit file was requested."""
    if folder is None:
        if labelled is not None:
            raise UserError('--labelled measures an 8-bit file: also give --int8 FOLDER, or omit --labelled')
        if number is not None:
            raise UserError(
                '--calibration-images are those of --int8 FOLDER: give it, too, or omit --calibration-images'
            )
        return None
    if kind != 'onnx':
        raise UserError(f'--int8 is not supported with --format {kind}: use --format onnx')
    check_quantizer()
    if labelled is not None and not osp.isdir(labelled):
        raise UserError(
            f'--labelled {labelled} is not a folder: give a folder that contains one folder of images per class'
        )
    return calibration_images(folder, CALIBRATION_IMAGES if number is None else number)


def speed_size(cfg: Config, given: Sequence[int]) -> Tuple[int, int]:
    """Return height and width: as given, of the test pipeline's crop, or the usual ones of the task."""
    if given:
        if len(given) > 2 or min(given) < 1:
            raise UserError(
                f'--size is {" ".join(map(str, given))}, expected a height and a width in pixels, or one number'
            )
        return given[0], given[-1]
    for step in walk(cfg.get('test_dataloader') or {}):
        if type_name(step).endswith('CenterCrop') and 'crop_size' in step:
            crop = step['crop_size']  # width, height
            return (crop, crop) if isinstance(crop, int) else (crop[1], crop[0])
    return SIZES.get(task_or_library(cfg), SIZES['classification'])


def preparation(cfg: Config, network: Network) -> Preparation:
    """Return how pixels are normalized for a network."""
    settings = _preprocessor(cfg)
    channels = network.in_channels
    order = 'RGB' if settings.get('to_rgb') or settings.get('bgr_to_rgb') else 'BGR'
    return Preparation(
        tuple(map(float, settings.get('mean') or [0.0] * channels)),
        tuple(map(float, settings.get('std') or [1.0] * channels)),
        order if channels == 3 else 'as loaded',
    )


def pad_divisor(cfg: Config, module: Part) -> int:
    """Return the number to whose multiples images for a part are padded; 1 if it pads them itself."""
    return 1 if module.pads else int(_preprocessor(cfg).get('pad_size_divisor') or 1)


def _preprocessor(cfg: Config) -> Dict[str, Any]:
    return cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}


def input_reader(cfg: Config, network: Network, module: Part) -> Callable[[str], Tensor]:
    """Return a function that reads an image file as a part takes it, contiguous, by the config's test pipeline.

    Images for a detector are not padded, because its graph pads them.
    """

    def read(path: str) -> Tensor:
        prepared = network.prepare(path)
        if not isinstance(module, FromPixels):
            image = prepared.image
            return (image[:, :, : prepared.size[0], : prepared.size[1]] if module.pads else image).contiguous()
        pixels = swap_channels(prepared.pixels)
        return torch.from_numpy(pixels[: prepared.size[0], : prepared.size[1]].copy())[None]

    return read


def describe(
    cfg: Config, network: Network, part: str, optimize: bool, size: Tuple[int, int], module: Part
) -> Dict[str, str]:
    """Describe the graph, for the file's metadata: above all how to prepare an image for it."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    pipeline = next(leaf_datasets(dataset)).get('pipeline') if dataset else None
    how = preparation(cfg, network)
    inside = isinstance(module, FromPixels)
    batch = 'batch' if 'batch' in module.axes.values() else 1
    return dict(
        producer=f'fcvit_mm {__version__}',
        config=network.name,
        task=network.task,
        part=part,
        optimized=json.dumps(optimize),
        preprocess='inside' if inside else 'beside',
        input=INPUTS['inside' if inside else 'beside'].format(batch=batch, channels=network.in_channels),
        mean=json.dumps(how.mean),
        std=json.dumps(how.std),
        channel_order=how.order,
        pad_size_divisor=json.dumps(pad_divisor(cfg, module)),
        **module.description(),
        size=json.dumps(size),
        test_pipeline=json.dumps(pipeline or [], default=str),
        classes=json.dumps(network.class_names or []),
    )


def _in_pytorch(module: nn.Module) -> Runnable:

    @torch.no_grad()
    def run(images: Tensor) -> Tuple[Tensor, ...]:
        return as_tuple(module(images))

    return run


def _check_labelled(folder: str, module: Part, network: Network, channels: int) -> List[Labelled]:
    """Find the images to measure accuracy on."""
    if module.output != 'scores':
        raise UserError(
            f'--labelled measures the accuracy of a classifier, but the graph returns {module.output}: omit --labelled'
        )
    (scores,) = _in_pytorch(module)(module.inputs(1, channels, *EXAMPLE[1:]))
    return labelled_images(folder, network.class_names, scores.shape[1])


def _measure(
    module: Part, runtimes: Dict[str, Runnable], samples: Sequence[Labelled], read: Callable[[str], Tensor]
) -> dict:
    """Measure how much the outputs of files differ from PyTorch."""
    runtimes = {PYTORCH: _in_pytorch(module), **runtimes}
    if module.output == 'detections':
        with torch.no_grad():
            return measure_detections(module, runtimes, samples, read)

    def last_of(run: Runnable) -> Callable[[Tensor], Tensor]:
        # Only the last of a backbone's maps, because it depends on all others.
        return lambda images: run(images)[-1]

    outputs = {name: last_of(run) for name, run in runtimes.items()}
    return measure_drift(outputs, samples, read, module.output != 'features')


def format_report(report: dict) -> str:
    """Return the report of :func:`export_model` as text."""
    opset = f', opset {OPSET}' if report['format'] == 'onnx' else ''
    what = f'{report["task"]}, {report["part"]}' + (', optimized for inference' if report['optimized'] else '')
    lines = [
        f'{report["file"]} ({report["format"]}{opset}; {what})',
        '',
        f'input    images: {report["input"]}',
        f'size     {_mebibytes(report["file_bytes"])} MiB; the weights in PyTorch '
        f'{_mebibytes(report["pytorch_bytes"])} MiB',
    ]
    int8 = report.get('int8')
    if int8:
        lines.append(f'         {_mebibytes(int8["file_bytes"])} MiB as INT8: {int8["file"]}')
    lines += [f'checked  {text}' for text in _format_differences(report['differences'], report['compared'])]
    speed = report.get('speed')
    if speed:
        times = ', '.join(f'{name} {value:.1f} ms' for name, value in speed['ms_per_image'].items())
        lines.append(
            f'speed    {times} (one {speed["size"][0]}x{speed["size"][1]} image; medians of {speed["rounds"]} rounds '
            f'in turn, {speed["threads"]} threads)'
        )
    if int8:
        lines += [
            '',
            f'INT8, calibrated on {int8["calibrated_on"]} images, measured on {int8["images"]} '
            f'({int8["measured_on"]}):',
        ]
        for name, found in int8['runtimes'].items():
            values = [f'{key.replace("_", " ")} {value:.4g}' for key, value in found.items()]
            lines.append(f'  {name}: ' + ', '.join(values))
    if report.get('metrics'):
        lines += ['', 'metrics on the test data:']
        for name, metrics in report['metrics'].items():
            lines.append(f'  {name}: ' + ', '.join(f'{key} {value:.6g}' for key, value in metrics.items()))
    return '\n'.join(lines)


def _format_differences(differences: List[dict], compared: Optional[str]) -> List[str]:
    """Describe the images of the comparison with PyTorch, and the differences."""
    lines = []
    for real in (False, True):
        found = [each for each in differences if each['real'] == real]
        if not found:
            continue
        worst = max(found, key=lambda each: each['largest'] / max(each['of'], 1e-30))
        if real:
            where = f'{len(found)} images of {compared}'
        else:
            shapes = ', '.join('{}x{}x{}'.format(*each['shape']) for each in found)
            where = f'random images of {shapes} (batch, height, width)'
        text = f'against PyTorch on {where}: '
        if worst['detections'] is not None:
            number = sum(each['detections'] for each in found)
            text += f'{sum(each["matched"] for each in found)} of {number} detections are the same, '
            surplus = sum(each['found'] for each in found) - number
            text += f'{surplus} more in the file, ' if surplus > 0 else ''
            if not number:
                text += 'a weak test (compare on your own images with --compare FOLDER), '
        lines.append(f'{text}largest difference {worst["largest"]:.2g} with outputs up to {worst["of"]:.3g}')
    return lines


def _mebibytes(number: int) -> str:
    return f'{number / 2**20:.1f}'
