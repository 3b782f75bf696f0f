"""A page in the browser on which a trained model predicts for images that are dropped there. Built on Gradio."""

import html
import os
import os.path as osp
import socket
import time
import traceback
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mmengine.registry import DefaultScope

from ..apis.draw import build_drawer
from ..checkpoints import CheckpointError
from ..engine.config import adapt_to_machine, load_config
from ..errors import UserError
from ..preflight.checks import PreflightError, checkpoint_problems

#: Gradio serves all that its pages need by itself from this version on.
MIN_GRADIO = (6, 17)
#: Of an upload: more than any camera's JPEG has, and what a decompression bomb would unfold to.
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
#: Larger images are reduced to this side before the prediction: what detectors are tested at.
MAX_SIDE = 1333
#: What is decoded, whatever a file is called: Pillow's names. Others (EPS, ...) would start other programs.
FORMATS = ('JPEG', 'PNG', 'BMP', 'PPM', 'TIFF', 'WEBP')
#: Models in memory at the same time.
LOADED = 2
DEFAULT_PORT = 7860
#: The browser asks no other host for anything, whatever a version of Gradio puts into its page.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
CSS = """
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: auto}
#prediction img {width: 100%; height: 100%; object-fit: contain}
#maps .grid-wrap {max-height: none !important; overflow: visible !important}
.told {padding: .6em .9em; border-radius: 6px; border-left: 4px solid #0072B2; background: #0072B212}
.told.problem {border-color: #D55E00; background: #D55E0018}
footer {display: none !important}
"""


class UploadError(UserError):
    """An image that is not taken. The message is for whoever dropped it."""


class Model(NamedTuple):
    """A model to choose: its config and its checkpoint."""

    config: str
    checkpoint: str


class Loaded(NamedTuple):
    """A model in memory.

    Attributes:
        scope (str): Of its library, which counts while it works: models of several may be here.
        draw (callable): Its predictions on an image, BGR to BGR, see :func:`~fcvit_mm.apis.draw.build_drawer`.
        look (callable, optional): From an image (RGB) to its :class:`View`; ``None`` for a network without maps.
    """

    scope: str
    draw: Callable[[np.ndarray], np.ndarray]
    look: Optional[Callable[[np.ndarray], 'View']]


class View(NamedTuple):
    """Maps of a network and what they lie over.

    Attributes:
        image (np.ndarray): ``(H, W, 3)`` uint8 RGB, as the network saw it.
        maps (dict[str, np.ndarray]): ``(heads, h, w)`` by the title of the layer.
    """

    pixels: np.ndarray
    maps: Dict[str, Any]


class Prediction(NamedTuple):
    """What a model made of an image.

    Attributes:
        drawn (np.ndarray): ``(H, W, 3)`` uint8 RGB.
        seconds (float): For predicting and drawing.
        view (View, optional): Its maps; ``None`` for a network that has none.
        view_seconds (float): For these.
    """

    drawn: np.ndarray
    seconds: float
    view: Optional[View]
    view_seconds: float


def find_models(pairs: Sequence[str], runs: Optional[str] = None) -> Dict[str, Model]:
    """The models to choose from, by name.

    Args:
        pairs (Sequence[str]): Config, checkpoint, config, checkpoint, ...
        runs (str, optional): A work directory of ``tools/train.py``, or a folder of such: each with the config that
            the runner wrote there and its best checkpoint, else its last.

    Raises:
        UserError: A file is missing, a config has no checkpoint, or there is no model at all.
    """
    if len(pairs) % 2:
        raise UserError(f'{pairs[-1]} stands alone: give pairs of a config and a checkpoint')
    models: Dict[str, Model] = {}
    for config, checkpoint in zip(pairs[::2], pairs[1::2]):
        for path, what in ((config, 'config'), (checkpoint, 'checkpoint')):
            if not osp.isfile(path):
                raise UserError(f'{what} {path} does not exist: give pairs of a config and a checkpoint')
        name = Path(config).stem
        models[name if name not in models else f'{name}, {Path(checkpoint).name}'] = Model(config, checkpoint)
    if runs is not None:
        if not osp.isdir(runs):
            raise UserError(f'--runs {runs} is not a folder')
        for folder in (Path(runs), *sorted(Path(runs).iterdir())):
            model = _run_model(folder) if folder.is_dir() else None
            if model is not None:
                models.setdefault(folder.resolve().name, model)
    if not models:
        raise UserError(
            f'no run in {runs}: expected folders of tools/train.py, with a config (.py) and a checkpoint (.pth)'
            if runs
            else 'no model: give a config and a checkpoint, or --runs with a folder of runs of tools/train.py'
        )
    return models


def _run_model(folder: Path) -> Optional[Model]:
    configs = sorted(folder.glob('*.py'))
    checkpoints = sorted(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime)
    if len(configs) != 1 or not checkpoints:
        return None
    best = [path for path in checkpoints if path.name.startswith('best_')]
    return Model(str(configs[0]), str((best or checkpoints)[-1]))


def read_upload(path: str, name: str, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image of which nothing is known.

    Args:
        path (str): The file.
        name (str): What it was called where it comes from.
        max_bytes (int): Of the file.
        max_pixels (int): Of the image; looked at before anything is unfolded.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8 RGB, turned as its EXIF data says.

    Raises:
        UploadError: Too large, cut off, or no image of a kind in ``FORMATS``.
    """
    import cv2
    from PIL import Image

    size = osp.getsize(path)
    if size > max_bytes:
        raise UploadError(
            f'{name} has {size / 2**20:.1f} MiB, more than the {max_bytes / 2**20:.0f} MiB that are '
            'taken. Save it smaller.'
        )
    if not size:
        raise UploadError(f'{name} is empty.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's own, lower limit
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height <= max_pixels:
                    image.load()
    except Image.DecompressionBombError:
        raise UploadError(
            f'{name} unfolds to far more than the {max_pixels / 1e6:.0f} million pixels that are taken.'
        ) from None
    except Exception as error:
        # Broad, because damaged bytes make decoders fail in any way there is.
        kinds = ', '.join(FORMATS[:-1])
        raise UploadError(
            f'{name} does not open as an image: it is broken, cut off, or of another kind than {kinds} '
            f'and {FORMATS[-1]}.'
        ) from error
    if width * height > max_pixels:
        raise UploadError(
            f'{name} has {width}x{height} pixels, more than the {max_pixels / 1e6:.0f} million that are '
            'taken. Save it smaller.'
        )
    # As tools/visualize.py reads images, so that the predictions are the same.
    decoded = cv2.imread(path)
    if decoded is None:
        raise UploadError(f'{name} opens, but not here: save it as PNG or JPEG.')
    return np.ascontiguousarray(decoded[..., ::-1])


def shrink(pixels: np.ndarray, side: int = MAX_SIDE) -> np.ndarray:
    """An image whose longer side is at most ``side``."""
    import cv2

    factor = side / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height, width = (max(1, round(length * factor)) for length in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


class Predictor:
    """Loads models as they are asked for, and lets them predict.

    Args:
        models (dict[str, Model]): By name.
        look (callable, optional): ``look(model)`` gives a callable from an image (RGB) to its :class:`View`, or
            ``None`` for a network without maps.
        device (str, optional): Default: a GPU if there is one.
        score_thr (float): Detection: least score of what is drawn.
    """

    def __init__(
        self,
        models: Dict[str, Model],
        look: Optional[Callable] = None,
        device: Optional[str] = None,
        score_thr: float = 0.3,
    ) -> None:
        self.models = models
        self.look = look
        self.device = device
        self.score_thr = score_thr
        self._loaded: 'OrderedDict[str, Loaded]' = OrderedDict()

    def load(self, name: str) -> Loaded:
        """Load a model, unless it is among those used last.

        Raises:
            UserError: No such model, or its config or checkpoint cannot be used.
        """
        if name not in self.models:
            raise UserError(f'there is no model {name!r}, but {", ".join(self.models)}')
        if name not in self._loaded:
            model = self.models[name]
            cfg = load_config(model.config)
            adapt_to_machine(cfg)
            problems = checkpoint_problems(model.checkpoint, 'the checkpoint')
            if problems:
                raise PreflightError(problems)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                draw = build_drawer(cfg, model.checkpoint, self.device, self.score_thr)
            self._loaded[name] = Loaded(cfg.default_scope, draw, self.look(model) if self.look else None)
            if len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def __call__(self, name: str, pixels: np.ndarray) -> Prediction:
        """Predict for an image, ``(H, W, 3)`` uint8 RGB."""
        scope, draw, look = self.load(name)
        start = time.perf_counter()
        with DefaultScope.overwrite_default_scope(scope):
            drawn = np.ascontiguousarray(draw(np.ascontiguousarray(pixels[..., ::-1]))[..., ::-1])
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        view = look(pixels) if look else None
        return Prediction(drawn, seconds, view, time.perf_counter() - start)


def import_gradio():
    """Gradio, which is imported nowhere else.

    Raises:
        UserError: It is missing or too old.
    """
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page is built on Gradio, which is not installed: pip install 'fcvit_mm[app]'") from error
    if tuple(int(part) for part in gradio.__version__.split('.')[:2]) < MIN_GRADIO:
        raise UserError(
            f'the page needs Gradio {".".join(map(str, MIN_GRADIO))} or newer, found {gradio.__version__}: '
            "pip install --upgrade 'fcvit_mm[app]'"
        )
    return gradio


def build_page(
    predictor: Predictor,
    draw_maps: Callable[[View, str], List[Tuple[np.ndarray, str]]],
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
):
    """The page, a ``gradio.Blocks``.

    Args:
        predictor (Predictor): What answers.
        draw_maps (callable): ``draw_maps(view, title)`` gives the maps of one layer as images (RGB) with captions.
        max_bytes (int), max_pixels (int): Of an upload.

    Raises:
        UserError: Gradio is missing or too old.
    """
    gradio = import_gradio()
    names = list(predictor.models)

    def answer(words='', pixels=None, found=None):
        """Values of the components, once the page has them."""
        titles = list(found.maps) if found else []
        title = titles[len(titles) // 2] if found else None  # the last ones are coarse
        return {
            drawn: pixels,
            told: words,
            view: found,
            layer: gradio.Dropdown(choices=titles, value=title, visible=bool(found)),
            maps: gradio.Gallery(value=draw_maps(found, title) if found else None, visible=bool(found)),
        }

    def predict(name, uploaded):
        """Takes what the browser sends as it is: Gradio's own decoding would answer with its own errors."""
        path = uploaded.get('path') if isinstance(uploaded, dict) else None
        if path is None:
            return answer()
        try:
            pixels = read_upload(path, uploaded.get('orig_name') or 'the image', max_bytes, max_pixels)
            small = shrink(pixels)
            found = predictor(name, small)
        except UploadError as error:
            return {**answer(tell(str(error), problem=True)), upload: None}
        except (UserError, CheckpointError, ImportError) as error:
            return answer(tell(str(error), problem=True))
        except Exception as error:
            # Broad, because a model may fail in any way; the page must not.
            traceback.print_exc()
            return answer(tell(f'{name} failed on this image ({type(error).__name__}): see the terminal.', True))
        size = 'x'.join(map(str, pixels.shape[1::-1]))
        reduced = '' if small is pixels else f', reduced to {"x".join(map(str, small.shape[1::-1]))}'
        rest = (
            '. No similarity maps: they belong to FCViT.'
            if found.view is None
            else f', {found.view_seconds:.2f} s for the similarity maps.'
        )
        words = f'{name}, an image of {size} pixels{reduced}: {found.seconds:.2f} s to predict and draw{rest}'
        return answer(tell(words), found.drawn, found.view)

    def show(found, title):
        return draw_maps(found, title) if found is not None and title in found.maps else None

    with gradio.Blocks(title='fcvit_mm', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(
            '# Try a model\nDrop an image. It stays on the machine that this page comes from, and is '
            'removed there about an hour later.'
        )
        with gradio.Row():
            with gradio.Column(scale=2):
                model = gradio.Dropdown(names, value=names[0], label='Model', elem_id='model')
                upload = gradio.Image(
                    label='Image', sources=['upload', 'clipboard'], type='filepath', height=320, elem_id='image'
                )
                told = gradio.HTML(elem_id='told')
            with gradio.Column(scale=3):
                drawn = gradio.Image(
                    label='Prediction',
                    interactive=False,
                    format='png',
                    height=480,
                    buttons=['download', 'fullscreen'],
                    elem_id='prediction',
                )
        layer = gradio.Dropdown([], label='Similarity to the mean of the image, in', visible=False, elem_id='layer')
        maps = gradio.Gallery(
            label='Similarity maps',
            show_label=False,
            visible=False,
            columns=5,
            height=None,
            format='png',
            object_fit='contain',
            elem_id='maps',
            buttons=['download', 'fullscreen'],
        )
        view = gradio.State()
        answers = [drawn, told, view, layer, maps]
        # An image that is dropped while another is being predicted waits; by default it would be passed over.
        gradio.on(
            [upload.upload, model.change],
            predict,
            [model, upload],
            [*answers, upload],
            preprocess=False,
            trigger_mode='always_last',
            api_visibility='private',
            show_progress_on=[drawn],
        )
        upload.clear(answer, None, answers, api_visibility='private')
        # Of a choice made by a person alone: predict() draws the first one itself.
        layer.input(show, [view, layer], maps, api_visibility='private')
    page.queue(max_size=16, default_concurrency_limit=1)
    return page


def tell(text: str, problem: bool = False) -> str:
    """A line for the page; nothing in it is taken for markup."""
    return f'<div class="told{" problem" if problem else ""}" role="status">{html.escape(text)}</div>'


class OwnHostOnly:
    """ASGI middleware: every answer tells the browser to load nothing from another host."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_policy(message):
            if message['type'] == 'http.response.start':
                message = dict(message, headers=[*message.get('headers', ()), (b'content-security-policy', POLICY)])
            await send(message)

        await self.app(scope, receive, send_with_policy)


def open_port(host: str, port: Optional[int]) -> socket.socket:
    """A listening socket.

    Args:
        host (str): Address to listen on.
        port (int, optional): 0 for any free one; ``None`` for ``DEFAULT_PORT`` or one of the next that is free.

    Raises:
        UserError: The port is taken or not allowed, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    ports = range(DEFAULT_PORT, DEFAULT_PORT + 20) if port is None else [port]
    failure: Optional[Exception] = None
    for each in ports:
        try:
            return socket.create_server((host, each), family=family)
        except (OSError, OverflowError) as error:
            failure = error
    raise UserError(
        f'the page cannot listen on {host}, port {port or f"{ports[0]} to {ports[-1]}"} ({failure}): '
        'name another by --host and --port'
    ) from failure


def build_server(page, max_bytes: int = MAX_BYTES):
    """A ``uvicorn.Server`` for the page, for ``run(sockets=[open_port(...)])``.

    Not by Gradio's own ``launch``: nothing here can make a public link, and nothing is sent anywhere.
    """
    gradio = import_gradio()
    import uvicorn
    from fastapi import FastAPI

    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnHostOnly)
    theme = gradio.themes.Default(primary_hue='blue', font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    gradio.mount_gradio_app(
        app,
        page,
        path='/',
        max_file_size=max_bytes,
        show_error=False,
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    # Without these, which its launch sets, Gradio opens any file of this machine that a request names as an upload.
    page.has_launched = page.is_running = True
    mounted = app.routes[-1].app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets=None):
            mounted.stop_event.set()  # every open page holds a connection, which would be waited for
            await super().shutdown(sockets)

    return Server(uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=3))
