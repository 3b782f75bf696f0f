"""Quantizing an ONNX file to 8-bit integers with ONNX Runtime, and measuring the change of its outputs."""

import os
import os.path as osp
import re
import tempfile
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from torch import Tensor

from ..checkpoints.names import some
from ..dependencies import how_to_install
from ..errors import UserError
from ..files import atomic_path
from ..images import ARRAY_SUFFIXES, IMAGE_SUFFIXES, find_images, image_problem, list_images
from .matching import match
from .parts import Part

#: Operators computed in 8 bits. Norms, the similarity, softmax and additions stay in float32: in 8 bits they would save
#: little time and cost much accuracy.
QUANTIZED = ('Conv', 'MatMul', 'Gemm')
#: First ONNX Runtime that quantizes graphs with a softmax that stays in float32.
MIN_ONNXRUNTIME = (1, 21)
#: Least overlap of two detections that count as the same in 8 bits.
DRIFTED_IOU = 0.5


class Labelled(NamedTuple):
    """An image and its class, if known."""

    path: str
    label: Optional[int] = None


def check_quantizer() -> None:
    """Check, before the export, that the installed ONNX Runtime can quantize.

    Raises:
        UserError: It is too old.
    """
    import onnxruntime

    version = tuple(int(number) for number in re.findall(r'\d+', onnxruntime.__version__)[:2])
    if version < MIN_ONNXRUNTIME:
        raise UserError(
            f'--int8 needs onnxruntime 1.21 or newer, found {onnxruntime.__version__}: {how_to_install("export")}'
        )


def calibration_images(folder: str, number: Optional[int], option: str = '--int8') -> List[Labelled]:
    """Choose ``number`` images below a folder, evenly spread over their sorted paths; all if there are fewer.

    Args:
        folder (str): The folder.
        number (int, optional): Number of images; ``None`` for all.
        option (str): The option that gave the folder, for messages.

    Raises:
        UserError: The folder is missing or empty, or an image cannot be decoded.
    """
    if not osp.isdir(folder):
        raise UserError(
            f'{option} {folder} is not a folder: give a folder with about a hundred typical input images; labels are '
            'not needed'
        )
    if number is not None and number < 1:
        raise UserError(f'--calibration-images is {number}, expected at least 1')
    paths = find_images(folder, recursive=True)
    number = len(paths) if number is None else min(number, len(paths))
    paths = [paths[i * len(paths) // number] for i in range(number)]
    problems = list(filter(None, map(image_problem, paths)))
    if problems:
        more = f'; and {len(problems) - 3} more of {option} {folder}' if len(problems) > 3 else ''
        raise UserError('; '.join(problems[:3]) + more)
    return [Labelled(path) for path in paths]


def labelled_images(folder: str, class_names: Optional[Sequence[str]], num_classes: int) -> List[Labelled]:
    """List the images of a folder with one folder per class.

    Args:
        folder (str): The folder.
        class_names (Sequence[str], optional): The model's classes in order, if the checkpoint contains them.
        num_classes (int): Number of classes of the model.

    Raises:
        UserError: The folder has no class folders, other classes than the model, or no images.
    """
    if not osp.isdir(folder):
        raise UserError(
            f'--labelled {folder} is not a folder: give a folder that contains one folder of images per class'
        )
    images = list_images(folder) or list_images(folder, ARRAY_SUFFIXES)
    parts_of = {path: osp.relpath(path, folder).split(os.sep) for path in images}
    labelled = {path: parts[0] for path, parts in parts_of.items() if len(parts) > 1}
    names = sorted(set(labelled.values()))
    if not names:
        raise UserError(
            f'no images ({", ".join(IMAGE_SUFFIXES)}) in the folders of {folder}, expected one folder per class: give '
            'the folder that contains these'
        )
    order = list(class_names) if class_names and set(names) <= set(class_names) else names
    if order is names and len(names) != num_classes:
        raise UserError(
            f'{folder} has {len(names)} folders ({some(names, 5)}), expected one for each of the '
            f'{num_classes} classes'
            + (f' ({some(class_names, 5)}): name them after the classes' if class_names else ': add the others')
        )
    return [Labelled(path, order.index(name)) for path, name in labelled.items()]


def quantize(path: str, out: str, images: Iterable[Tensor]) -> None:
    """Write the 8-bit version of an ONNX file: weights and inputs of the operators :data:`QUANTIZED`, in QDQ format.

    Weights have 7 bits and a scale per output channel: with 8, the sums of pairs of products saturate 16 bits on CPUs
    without VNNI instructions. Two kinds stay in float32: :func:`products_of_detections` and :func:`starts_of_streams`.

    Args:
        path (str): The float32 file.
        out (str): The file to write.
        images (Iterable[Tensor]): Batches of inputs, from which the ranges of all activations are determined.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> Optional[dict]:
            image = next(self.images, None)
            return None if image is None else {'images': image.numpy()}

    with tempfile.TemporaryDirectory() as folder, atomic_path(out, suffix='.onnx') as unchecked:
        prepared = osp.join(folder, 'prepared.onnx')
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            unchecked,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=[*products_of_detections(prepared), *starts_of_streams(prepared)],
        )
        model = onnx.load(unchecked)
        # ONNX Runtime's optimizer adds all operator sets that it knows; other runtimes may not know them.
        used = set(_domains(model.graph))
        imports = [each for each in model.opset_import if each.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(imports)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, unchecked)


def _domains(graph: Any) -> Iterator[str]:
    """Yield the operator set of each node of an ONNX graph and of the graphs within it."""
    for node in graph.node:
        yield node.domain
        for attribute in node.attribute:
            if attribute.HasField('g'):
                yield from _domains(attribute.g)


def products_of_detections(path: str) -> List[str]:
    """Return the nodes of an ONNX file that multiply matrices without weights after non-maximum suppression.

    These are the networks that RTMDet-Ins predicts for each object. With 8 bits, one scale would serve the kernels of
    all objects, and one the features and distances, which lowers the mask mAP.
    """
    import onnx

    graph = onnx.load(path).graph
    weights = {each.name for each in graph.initializer}
    later: Set[str] = set()  # tensors that depend on detections
    found = []
    for node in graph.node:  # in the order in which they are computed
        if node.op_type != 'NonMaxSuppression' and later.isdisjoint(node.input):
            continue
        later.update(node.output)
        if node.op_type == 'MatMul' and weights.isdisjoint(node.input):
            found.append(node.name)
    return found


def starts_of_streams(path: str) -> List[str]:
    """Return the nodes of an ONNX file whose output begins a residual stream: patch embeddings, downsampling.

    Their rounding error in 8 bits stays in the stream up to the heads, because residual branches only add to it.
    """
    import onnx

    graph = onnx.load(path).graph
    varying = {each.name for each in graph.input} - {each.name for each in graph.initializer}
    nodes = []  # those that depend on pixels, in the order in which they are computed
    for node in graph.node:
        if node.op_type != 'Shape' and not varying.isdisjoint(node.input):
            varying.update(node.output)
            nodes.append((node.op_type, varying.intersection(node.input), set(node.output)))
    return [node.name for node in graph.node if node.op_type in QUANTIZED and _additions(nodes, node.output) > 1]


def _additions(nodes: Sequence[Tuple[str, Set[str], Set[str]]], tensors: Iterable[str]) -> int:
    """Count the residual additions of a stream: of a tensor and results of convolutions or products of it.

    Args:
        nodes (Sequence[tuple]): Operator, inputs and outputs of the nodes after the tensor, and of others.
        tensors (iterable[str]): The tensor's name.
    """
    stream, number = set(tensors), 0
    branches: Set[str] = set()
    for operator, inputs, outputs in nodes:
        if operator in QUANTIZED:
            branches |= outputs if inputs & (stream | branches) else set()
        elif inputs <= stream:
            stream |= outputs
        elif operator == 'Add' and inputs <= stream | branches and inputs & stream:
            number += 1
            stream |= outputs
        elif inputs & branches:
            branches |= outputs
    return number


def measure_drift(
    runtimes: Dict[str, Callable[[Tensor], Tensor]],
    samples: Sequence[Labelled],
    prepare: Callable[[str], Tensor],
    has_classes: bool,
) -> dict:
    """Measure the differences between the outputs of the first runtime and of the others.

    Args:
        runtimes (dict[str, callable]): Functions from images ``(1, C, H, W)`` to one output; the first is the
        reference.
        samples (Sequence[Labelled]): Images; with labels, the accuracy is measured too.
        prepare (callable): Function from the path of an image to inputs of the runtimes.
        has_classes (bool): Whether the output's second axis is that of classes (scores, logits).

    Returns:
        dict: ``images``, and for each runtime ``mean_abs_difference`` and ``max_abs_difference`` of the outputs,
        ``agreement`` of the best class (of images, or of pixels) and ``accuracy``; what cannot be measured is absent.
    """
    reference = next(iter(runtimes))
    sums = {name: dict(mean=0.0, max=0.0, same=0.0, right=0) for name in runtimes}
    for sample in samples:
        images = prepare(sample.path)
        outputs = {name: run(images) for name, run in runtimes.items()}
        # A single channel without labels, as of a segmentor with a sigmoid, has no best class.
        has_classes &= outputs[reference].shape[1] > 1 or sample.label is not None
        for name, output in outputs.items():
            difference = (output - outputs[reference]).abs()
            sums[name]['mean'] += difference.mean().item()
            sums[name]['max'] = max(sums[name]['max'], difference.max().item())
            if has_classes:
                best = output.argmax(1)
                sums[name]['same'] += (best == outputs[reference].argmax(1)).double().mean().item()
                sums[name]['right'] += sample.label is not None and best.item() == sample.label
    result: Dict[str, Any] = dict(images=len(samples), runtimes={})
    for name, total in sums.items():
        found = dict(mean_abs_difference=total['mean'] / len(samples), max_abs_difference=total['max'])
        if has_classes:
            found['agreement'] = total['same'] / len(samples)
        if samples[0].label is not None:
            found['accuracy'] = total['right'] / len(samples)
        result['runtimes'][name] = found
    return result


def measure_detections(
    part: Part,
    runtimes: Dict[str, Callable[[Tensor], Tuple[Tensor, ...]]],
    samples: Sequence[Labelled],
    prepare: Callable[[str], Tensor],
) -> dict:
    """Measure the fraction of the library's detections found in several runtimes, for any score.

    Args:
        part (nn.Module): A complete detector, as a :class:`fcvit_mm.export.parts.Part`.
        runtimes (dict[str, callable]): Functions from images to detections, as the graph returns them.
        samples (Sequence[Labelled]): Images.
        prepare (callable): Function from the path of an image to inputs of the runtimes.

    Returns:
        dict: ``images``, and for each runtime the number of ``detections``, the share of ``same_detections`` (of the
        same label, overlapping by :data:`DRIFTED_IOU`; of the longer list) and ``max_abs_difference`` of their scores.
    """
    sums = {name: dict(found=0, same=0, longer=0, largest=0.0) for name in runtimes}
    for sample in samples:
        images = prepare(sample.path)
        expected = part.expected(images)
        for name, run in runtimes.items():
            matches = match(expected, part.complete(run(images), images), DRIFTED_IOU, 1.0)
            sums[name]['found'] += matches.found
            sums[name]['same'] += matches.matched
            sums[name]['longer'] += max(matches.expected, matches.found)
            sums[name]['largest'] = max(sums[name]['largest'], matches.score)
    result: Dict[str, Any] = dict(images=len(samples), runtimes={})
    for name, total in sums.items():
        result['runtimes'][name] = dict(
            detections=total['found'],
            same_detections=total['same'] / max(total['longer'], 1),
            max_abs_difference=total['largest'],
        )
    return result
