"""The page of the web demo, built on Gradio: a trained model predicts for uploaded images."""

import html
import traceback
from typing import Any, Dict, Optional

import numpy as np

from ..dependencies import how_to_install
from ..errors import UserError
from ..images import ImageError, read_untrusted_image
from ..options import MAX_UPLOAD_BYTES as MAX_BYTES
from ..options import MAX_UPLOAD_PIXELS as MAX_PIXELS
from .models import Predictor, Similarity, draw_similarity, shrink

#: First version of Gradio whose pages load nothing from other hosts.
MIN_GRADIO = (6, 17)


def import_gradio() -> Any:
    """Import Gradio, which is imported nowhere else.

    Raises:
        UserError: Gradio is missing or too old.
    """
    try:
        import gradio
    except ImportError as error:
        raise UserError(f'the web demo needs Gradio, which is not installed: {how_to_install("app")}') from error
    if tuple(int(part) for part in gradio.__version__.split('.')[:2]) < MIN_GRADIO:
        raise UserError(
            f'the web demo needs Gradio {".".join(map(str, MIN_GRADIO))} or newer, found {gradio.__version__}: pip '
            'install --upgrade gradio'
        )
    return gradio


def build_page(predictor: Predictor, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Any:
    """Build the page, a ``gradio.Blocks``.

    Args:
        predictor (Predictor): The models, and how they predict.
        max_bytes (int), max_pixels (int): Limits of an upload.

    Raises:
        UserError: Gradio is missing or too old.
    """
    gradio = import_gradio()
    names = list(predictor.models)

    def answer(
        text: str = '', pixels: Optional[np.ndarray] = None, found: Optional[Similarity] = None
    ) -> Dict[Any, Any]:
        """Return the values of the page's components."""
        titles = list(found.maps) if found else []
        title = titles[len(titles) // 2] if found else None  # the last ones have few positions
        return {
            drawn: pixels,
            message: text,
            similarity: found,
            layer: gradio.Dropdown(choices=titles, value=title, visible=bool(found)),
            maps: gradio.Gallery(value=draw_similarity(found, title) if found and title else None, visible=bool(found)),
        }

    def predict(name: str, uploaded: Any) -> Dict[Any, Any]:
        """Predict for an uploaded file; Gradio does not decode it, because it would show its own errors."""
        path = uploaded.get('path') if isinstance(uploaded, dict) else None
        if path is None:
            return answer()
        try:
            called = uploaded.get('orig_name') or 'the image'
            pixels = read_untrusted_image(path, called, max_bytes, max_pixels, predictor.load(name).read)
            small = shrink(pixels)
            found = predictor(name, small)
        except ImageError as error:
            return {**answer(format_message(str(error), problem=True)), upload: None}
        except (UserError, ImportError) as error:
            return answer(format_message(str(error), problem=True))
        except Exception as error:
            # Broad, because a model may raise any error, and the page must keep working.
            traceback.print_exc()
            return answer(
                format_message(f'{name} failed on this image ({type(error).__name__}): see the terminal.', True)
            )
        size = 'x'.join(map(str, pixels.shape[1::-1]))
        reduced = '' if small is pixels else f', reduced to {"x".join(map(str, small.shape[1::-1]))}'
        rest = (
            '. No similarity maps: they belong to FCViT.'
            if found.similarity is None
            else f', {found.similarity_seconds:.2f} s for the similarity maps.'
        )
        text = f'{name}, an image of {size} pixels{reduced}: {found.seconds:.2f} s to predict and draw{rest}'
        return answer(format_message(text), found.drawn, found.similarity)

    def show(found: Optional[Similarity], title: str) -> Any:
        # Gradio deletes files of a component that answer() has changed only if they are handed over as a change, too.
        return gradio.Gallery(value=draw_similarity(found, title) if found and title in found.maps else None)

    with gradio.Blocks(title='fcvit_mm', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(
            '# Try a model\nDrop an image. It is sent only to the machine that serves this page, and deleted there '
            'after about an hour.'
        )
        with gradio.Row():
            with gradio.Column(scale=2):
                model = gradio.Dropdown(names, value=names[0], label='Model', elem_id='model')
                upload = gradio.Image(
                    label='Image', sources=['upload', 'clipboard'], type='filepath', height=320, elem_id='image'
                )
                message = gradio.HTML(elem_id='message')
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
        similarity = gradio.State()
        answers = [drawn, message, similarity, layer, maps]
        # An image dropped during a prediction is queued; by default Gradio would ignore it.
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
        # Only for a choice by the user, because predict() draws the first layer itself.
        layer.input(show, [similarity, layer], maps, api_visibility='private')
    page.queue(max_size=16, default_concurrency_limit=1)
    return page


def format_message(text: str, problem: bool = False) -> str:
    """Return a line for the page, with HTML escaped."""
    return f'<div class="message{" problem" if problem else ""}" role="status">{html.escape(text)}</div>'
