"""Test networks of this project in stock configs of mmdet and mmseg, and write the table of docs/stock_configs.md.

In each config the backbone is replaced (fcvit_mm.apis.stock). Two processes read the written config, train two steps on
random images under DistributedDataParallel over gloo, and predict. find_unused_parameters is not set, so that an unused
parameter would end the second step.
"""

import argparse
import multiprocessing
import os
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper

from fcvit_mm.apis.load import build_model
from fcvit_mm.apis.random_batch import BATCH, random_batch
from fcvit_mm.apis.rewiring import readers
from fcvit_mm.apis.step import SIZES, scope_of_library, without_downloads
from fcvit_mm.apis.stock import replace_backbone
from fcvit_mm.engine.config import type_name
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'stock_configs.md'
BEGIN, END = '<!-- table stock configs -->\n\n', '\n<!-- end of table -->\n'
PROCESSES = 2
STEPS = 2
#: Time limit for the processes of one config, in seconds.
TIMEOUT = 1200


class Row(NamedTuple):
    """A method, its stock config, and the network that is put into it."""

    method: str
    config: str
    network: str = 'fcvit_tiny'


class Result(NamedTuple):
    """Outcome of a row.

    Attributes:
        row (Row): The row.
        outputs (str): The backbone's ``out_indices`` and strides.
        readers (str): Parts that read them, with their channels.
        losses (int): Number of losses, their sum not counted; all were finite in both steps.
        predicts (str): Content of the predictions.
        error (str): Why it failed; empty if it did not.
        seconds (float): Total time.
    """

    row: Row
    outputs: str = ''
    readers: str = ''
    losses: int = 0
    predicts: str = ''
    error: str = ''
    seconds: float = 0.0


ROWS = [
    Row('Faster R-CNN', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco'),
    Row('Faster R-CNN, dilated C5', 'mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco'),
    Row('RetinaNet', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'),
    Row('FCOS', 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'),
    Row('ATSS', 'mmdet::atss/atss_r50_fpn_1x_coco'),
    Row('TOOD', 'mmdet::tood/tood_r50_fpn_1x_coco'),
    Row('RTMDet', 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco'),
    Row('RTMDet-Ins', 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco'),
    Row('YOLOX', 'mmdet::yolox/yolox_tiny_8xb8-300e_coco'),
    Row('YOLOv3', 'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco'),
    Row('DINO', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco'),
    Row('Deformable DETR', 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco'),
    Row('Conditional DETR', 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco'),
    Row('DDQ', 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco'),
    Row('Mask2Former, instances', 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco'),
    Row('Mask2Former, panoptic', 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic'),
    Row('Panoptic FPN', 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco'),
    Row('HTC', 'mmdet::htc/htc_r50_fpn_1x_coco'),
    Row('CondInst', 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance'),
    Row('CenterNet', 'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco'),
    Row('CenterNet, updated', 'mmdet::centernet/centernet-update_r50-caffe_fpn_ms-1x_coco'),
    Row('PSPNet', 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'),
    Row('DeepLabV3+', 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024'),
    Row('SegFormer', 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512'),
    Row('Mask2Former, semantic', 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512'),
    Row('OCRNet', 'mmseg::ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024'),
    Row('OCRNet of HRNet', 'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024'),
    Row('K-Net, DeepLabV3', 'mmseg::knet/knet-s3_r50-d8_deeplabv3_8xb2-adamw-80k_ade20k-512x512'),
    Row('K-Net, UperNet', 'mmseg::knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512'),
    Row('RetinaNet', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco', 'dwnet_tiny'),
    Row('RetinaNet', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco', 'attnscale_swin_small'),
    Row('RetinaNet', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco', 'featscale_vit_small_12'),
    Row('PSPNet', 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024', 'attnscale_cait_xxs24'),
]


def check(row: Row, folder: Path) -> Result:
    """Replace the backbone of a row's config, and let two processes train and predict."""
    start = time.perf_counter()
    try:
        cfg = replace_backbone(row.config, row.network)
    except UserError as error:
        return Result(row, error=str(error), seconds=time.perf_counter() - start)
    path = folder / 'config.py'
    write_atomic(path, cfg.pretty_text.encode())
    found = run_processes(str(path))
    seconds = time.perf_counter() - start
    result = Result(row, describe_outputs(cfg), describe_readers(cfg), seconds=seconds)
    return result._replace(**found)


def describe_outputs(cfg: Config) -> str:
    """Return which stages a config's backbone returns, as text."""
    stride = cfg.model.backbone.get('output_stride')
    return f'{tuple(cfg.model.backbone.out_indices)}' + (f', output_stride {stride}' if stride else '')


def describe_readers(cfg: Config) -> str:
    """Return the parts that read a backbone's outputs, with their channels, as text."""
    found = []
    for name, node in readers(cfg.model):
        channels = [node[key] for key in node if key.endswith('in_channels')]
        if channels:
            found.append(f'{name} ({type_name(node)}) {", ".join(map(str, channels))}')
    return '; '.join(found)


def run_processes(config: str) -> Dict[str, Any]:
    """Let processes train and predict with a written config; return what the first one found."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'fcvit_mm', 'mmdet.apis', 'mmseg.apis'])
    queue = context.Queue()
    workers = [context.Process(target=work, args=(config, rank, port, queue)) for rank in range(PROCESSES)]
    for worker in workers:
        worker.start()
    found: List[Dict[str, Any]] = []
    deadline = time.monotonic() + TIMEOUT
    while len(found) < PROCESSES and time.monotonic() < deadline:
        if not queue.empty():
            found.append(queue.get())
        elif not any(worker.is_alive() for worker in workers):
            break
        else:
            time.sleep(0.1)
    for worker in workers:
        worker.join(1)
        if worker.is_alive():
            worker.kill()
    failed = [each for each in found if each.get('error')]
    if failed:
        return failed[0]
    if len(found) < PROCESSES:
        return dict(error=f'{PROCESSES - len(found)} of {PROCESSES} processes ended without a result')
    return found[0]


def work(config: str, rank: int, port: int, queue: Any) -> None:
    """Run one of the processes, which puts its result into the queue."""
    torch.set_num_threads(1)
    os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    dist.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=PROCESSES)
    try:
        queue.put(train_and_predict(Config.fromfile(config)))
    except Exception as error:
        # Broad: the failure, whatever it is, is the result.
        queue.put(dict(error=f'{type(error).__name__}: {error}'))
    finally:
        queue.close()
        queue.join_thread()
        dist.destroy_process_group()


def train_and_predict(cfg: Config, sizes: Sequence[int] = SIZES) -> Dict[str, Any]:
    """Train two steps under DistributedDataParallel and predict, in this process of several."""
    with scope_of_library(cfg):
        for size in sizes:
            torch.manual_seed(0)
            small = without_downloads(cfg, size)
            inner = build_model(small).train()
            inner.init_weights()
            model = MMDistributedDataParallel(inner, device_ids=None, broadcast_buffers=False)
            settings = dict(small.optim_wrapper, type='OptimWrapper')
            for key in ('loss_scale', 'dtype'):
                settings.pop(key, None)
            optimizer = build_optim_wrapper(inner, settings)
            torch.manual_seed(dist.get_rank())  # each process learns from images of its own
            try:
                losses = [model.train_step(random_batch(small, size), optimizer) for _ in range(STEPS)]
            except Exception:
                if size == sizes[-1]:
                    raise
                continue
            model.eval()
            with torch.no_grad():
                samples = model.val_step(random_batch(small, size))
            break
    for step in losses:
        bad = [name for name, value in step.items() if not torch.isfinite(torch.as_tensor(value)).all()]
        if bad:
            raise UserError(f'not finite: {", ".join(bad)}')
    if len(samples) != BATCH:
        raise UserError(f'{len(samples)} predictions, expected one for each of {BATCH} images')
    check_equal_weights(inner)
    return dict(losses=sum('loss' in name for name in losses[0]) - 1, predicts=described(samples[0]))


def check_equal_weights(model: torch.nn.Module) -> None:
    """Raise an error if the processes' parameters differ, because a gradient was not averaged."""
    total = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
    others = [torch.zeros_like(total) for _ in range(dist.get_world_size())]
    dist.all_gather(others, total)
    if not all(torch.equal(other, total) for other in others):
        raise UserError("the processes' weights differ after training")


def described(sample: Any) -> str:
    """Describe the content of a prediction."""
    found = []
    if 'pred_instances' in sample:
        found.append('masks' if 'masks' in sample.pred_instances else 'boxes')
    if 'pred_panoptic_seg' in sample:
        found.append('panoptic map')
    if 'pred_sem_seg' in sample:
        found.append('map of labels')
    if not found:
        raise UserError(f'the prediction contains {list(sample.keys())}, expected instances or segmentation maps')
    return ', '.join(found)


COLUMNS = ('method', 'config', 'network', 'outputs', 'who reads them', 'two processes train', 'predicts')
NOT_TRIED = 'not yet tried'
HEADER = f'| {" | ".join(COLUMNS)} |\n|{"---|" * len(COLUMNS)}\n'


def line_of(result: Result) -> str:
    """Return a result's line of the table."""
    row = result.row
    found = [result.outputs, result.readers, f'yes, {result.losses} losses', result.predicts]
    if result.error:
        found = ['', '', f'no: {one_line(result.error)}', '']
    return begin_of(row) + ' | '.join(found) + ' |\n'


def begin_of(row: Row) -> str:
    """Return the beginning of a row's line in the table."""
    return f'| {row.method} | `{row.config}` | {row.network} | '


def one_line(text: str) -> str:
    return re.sub(r'\s+', ' ', text).replace('|', '/')[:300]


def fill(page: str, results: Sequence[Result]) -> str:
    """Return a page with results in its table; rows that were not tested keep their lines.

    Raises:
        UserError: The page has no markers for the table.
    """
    before, begin, rest = page.partition(BEGIN)
    content, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f'{PAGE} has no {BEGIN.strip()!r} closed by {END.strip()!r}: add it')
    there = content.splitlines(keepends=True)
    new = {result.row: line_of(result) for result in results}
    lines = []
    for row in ROWS:
        start = begin_of(row)
        old = next((line for line in there if line.startswith(start)), f'{start} |  | {NOT_TRIED} |  |\n')
        lines.append(new.get(row, old))
    return ''.join([before, begin, HEADER, *lines, end, after])


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Test the rows and write the table.

    Raises:
        UserError: A row fails.
    """
    parser = command_parser(__doc__)
    parser.add_argument(
        '--only', metavar='TEXT', help='only rows with this text in one of their cells; the others are kept'
    )
    parser.add_argument('--missing', action='store_true', help='only rows without a success in the table')
    args: argparse.Namespace = parser.parse_args(argv)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    rows = [row for row in ROWS if not args.only or any(args.only.lower() in cell.lower() for cell in row)]
    if not rows:
        raise UserError(f'--only {args.only} matches no row; the methods are {", ".join(row.method for row in ROWS)}')
    if args.missing:
        page = PAGE.read_text(encoding='utf-8').splitlines()
        done = [row for row in rows if any(line.startswith(begin_of(row)) and ' yes, ' in line for line in page)]
        rows = [row for row in rows if row not in done]
    results: List[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            results.append(check(row, Path(folder)))
            shown = results[-1]
            print(
                f'{shown.seconds:6.1f} s  {row.method}, {row.network}: '
                f'{shown.error or f"{shown.outputs}; {shown.readers}; {shown.losses} losses; {shown.predicts}"}',
                flush=True,
            )
            write_atomic(PAGE, fill(PAGE.read_text(encoding='utf-8'), results).encode())
    failed = [result.row.method for result in results if result.error]
    if failed:
        raise UserError(f'{len(failed)} of {len(rows)} failed: {", ".join(failed)}')


if __name__ == '__main__':
    run_command(main)
