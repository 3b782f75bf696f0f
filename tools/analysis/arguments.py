"""Arguments that the analysis commands share: networks, images, sizes, query points."""

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the folder of command_line
from command_line import UserError, check_device

if TYPE_CHECKING:
    from fcvit_mm.apis.load import Network

NETWORK_HELP = (
    "config file of a classifier, detector or segmentor, or timm:NAME for one of timm's models, then @ and "
    'the checkpoint: CONFIG@CHECKPOINT; without @, random weights'
)
MODEL_HELP = "config file of a classifier, detector or segmentor, or timm:NAME for one of timm's models"
CHECKPOINT_HELP = 'checkpoint file that was trained with it, or published:NAME'
DEPRECATED_IMAGES = '--pictures'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every analysis command."""
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        help='folder for the plots (PNG) and numbers (JSON); files of the same names are overwritten',
    )
    parser.add_argument(
        '--size',
        help='height and width in pixels: images are resized to cover them and cropped, such as 224 or 480x640 '
        '(default: the size at which the network is tested)',
    )
    parser.add_argument('--device', default='cpu', help='such as cpu (default) or cuda:0')


def add_networks_and_images(parser: argparse.ArgumentParser, images_help: str) -> None:
    """Add the networks and ``--images`` of a command that compares networks; ``images_help`` says how it uses them."""
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help=NETWORK_HELP)
    parser.add_argument(
        '--images',
        DEPRECATED_IMAGES,
        action=_Images,
        nargs='+',
        required=True,
        metavar='IMAGE',
        help=f'images or folders of them: {images_help} ({DEPRECATED_IMAGES} is the deprecated name)',
    )


class _Images(argparse.Action):
    """Action that stores the images, and warns about the deprecated name."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Optional[str] = None
    ) -> None:
        if option == DEPRECATED_IMAGES:
            from fcvit_mm.deprecation import warn_deprecated

            warn_deprecated(DEPRECATED_IMAGES, '--images')
        setattr(namespace, self.dest, values)


def parse_arguments(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Parse the arguments of an analysis command; ``size`` becomes a tuple or ``None``.

    Raises:
        UserError: ``--size`` is invalid.
    """
    args = parser.parse_args(argv)
    args.size = parse_size(args.size)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Check the device and the folder of the results, before anything is loaded.

    Raises:
        UserError: No such device.
        WriteError: ``--out`` cannot be written.
    """
    from fcvit_mm.files import check_writable_folder

    check_device(args.device)
    check_writable_folder(args.out)


def parse_size(text: Optional[str]) -> Optional[Tuple[int, int]]:
    """Parse ``224`` or ``480x640`` to height and width; ``None`` is returned unchanged.

    Raises:
        UserError: The text is neither.
    """
    if text is None:
        return None
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(
            f'--size is {text}, expected a height and a width in pixels, such as 480x640, or one number for both'
        )
    return int(parts[0]), int(parts[-1])


def parse_queries(texts: Sequence[str]) -> List[Tuple[float, float]]:
    """Parse texts such as ``0.5,0.25`` to query points ``(y, x)``, as fractions of the image's height and width.

    Raises:
        UserError: A text is not two numbers from 0 to 1.
    """
    queries = []
    for text in texts:
        try:
            y, x = (float(part) for part in text.split(','))
        except ValueError:
            y = x = -1.0
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise UserError(
                f'--queries is {text}, expected Y,X as fractions of the height and width, from 0 to 1, such as 0.5,0.5 '
                'for the centre'
            )
        queries.append((y, x))
    return queries


def load_networks(specs: Sequence[str], device: str) -> List['Network']:
    """Load networks, each given as ``CONFIG@CHECKPOINT``; a number is added to names that occur twice."""
    from fcvit_mm.apis.load import load_network

    networks: List['Network'] = []
    for spec in specs:
        config, checkpoint = split_network(spec)
        network = load_network(config, checkpoint or None, device)
        names = itertools.chain([network.name], (f'{network.name} ({number})' for number in itertools.count(2)))
        used = {each.name for each in networks}
        networks.append(network._replace(name=next(name for name in names if name not in used)))
    return networks


def split_network(spec: str) -> Tuple[str, str]:
    """Split ``CONFIG@CHECKPOINT``; the paths of both may contain an @. Without a checkpoint, it is empty."""
    places = [place for place, letter in enumerate(f'{spec}@') if letter == '@']
    end = next((place for place in reversed(places) if os.path.isfile(spec[:place])), places[0])
    return spec[:end], spec[end + 1 :]


def find_all_images(paths: Sequence[str]) -> List[str]:
    """List images, given as files or folders, and check that the files are complete.

    Raises:
        ImageError: A path that does not exist, is no image, is truncated, or is a folder without images.
    """
    from fcvit_mm.images import ImageError, find_images, truncation_problem

    found = [image for path in paths for image in find_images(path)]
    for problem in filter(None, map(truncation_problem, found)):
        raise ImageError(problem)
    return found


def file_name(text: str) -> str:
    """Return a network's or image's name as part of a file name."""
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in text)
