"""What the analysis commands share: networks, images and sizes on the command line."""

import argparse
import os
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch

from fcvit_mm.apis.load import Network, load_network
from fcvit_mm.errors import UserError
from fcvit_mm.images import ImageError, find_inputs

NETWORK_HELP = (
    "config file of a classifier, detector or segmentor, or timm:NAME for one of timm's models, then @ and "
    'the checkpoint: CONFIG@CHECKPOINT; without @, random weights'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every analysis command."""
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        help='folder for the plots (PNG) and numbers (JSON); files of the same names are overwritten',
    )
    parser.add_argument(
        '--size',
        help='height and width that images are resized to cover and cropped to, as 224 or '
        '480x640 (default: as the network is tested)',
    )
    parser.add_argument('--device', default='cpu', help='such as cpu (default) or cuda:0')


def check_arguments(args: argparse.Namespace) -> None:
    """Turn ``args.size`` into a tuple or ``None``, and look at the device.

    Raises:
        UserError: A size or device that is none.
    """
    args.size = parse_size(args.size)
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {args.device} cannot be used here: {str(error).splitlines()[0]}') from error


def parse_size(text: Optional[str]) -> Optional[Tuple[int, int]]:
    """``224`` or ``480x640``: height and width; ``None`` stays.

    Raises:
        UserError: Neither.
    """
    if text is None:
        return None
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f'--size {text}: expected a height and a width in pixels, as 480x640, or one number for both')
    return int(parts[0]), int(parts[-1])


def parse_queries(texts: Sequence[str]) -> List[Tuple[float, float]]:
    """``0.5,0.25``: where a query stands, from the top and from the left, as parts of the image's height and width.

    Raises:
        UserError: Not two numbers from 0 to 1.
    """
    queries = []
    for text in texts:
        try:
            y, x = (float(part) for part in text.split(','))
        except ValueError:
            y = x = -1.0
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise UserError(
                f'--queries {text}: expected Y,X from 0 to 1, parts of the height and width: 0.5,0.5 is the middle'
            )
        queries.append((y, x))
    return queries


def load_networks(specs: Sequence[str], device: str) -> List[Network]:
    """Networks from ``CONFIG@CHECKPOINT`` each, with names that differ."""
    networks = []
    for spec in specs:
        whole = '@' not in spec or os.path.isfile(spec)  # names of folders may have one
        config, _, checkpoint = (spec, '', '') if whole else spec.rpartition('@')
        network = load_network(config, checkpoint or None, device)
        same = [each.name for each in networks if each.name.partition(' (')[0] == network.name]
        networks.append(network._replace(name=f'{network.name} ({len(same) + 1})') if same else network)
    return networks


def find_images(paths: Sequence[str]) -> List[str]:
    """Images, and all images of folders.

    Raises:
        ImageError: One does not exist, is a video, or a folder without images.
    """
    found = []
    for path in paths:
        images, video = find_inputs(path)
        if video:
            raise ImageError(f'{video} is a video: take images out of it first')
        found += images
    return found


def file_name(text: str) -> str:
    """A network's or image's name as part of a file's name."""
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in text)
