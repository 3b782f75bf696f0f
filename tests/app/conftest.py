import threading
import time
from contextlib import contextmanager

import pytest
import torch
from harness import write_config

from fcvit_mm.app.models import Model, Predictor
from fcvit_mm.app.page import build_page
from fcvit_mm.app.server import build_server, open_port


def write_model(folder, name):
    """Write the config and checkpoint of a classifier with random weights, as tools/train.py does."""
    from fcvit_mm.apis.load import build_model
    from fcvit_mm.engine.config import load_config

    folder.mkdir()
    config = write_config('classification', folder, folder)
    config = config.rename(folder / f'{name}.py')
    torch.manual_seed(0)
    torch.save(
        dict(
            state_dict=build_model(load_config(str(config))).state_dict(),
            meta=dict(dataset_meta=dict(classes=('circle', 'cross', 'square', 'star', 'triangle'))),
        ),
        folder / 'epoch_1.pth',
    )
    return Model(str(config), str(folder / 'epoch_1.pth'))


@contextmanager
def serve(tmp_path):
    pytest.importorskip('gradio')
    pytest.importorskip('mmpretrain')
    good = write_model(tmp_path / 'run', 'fcvit_tiny_shapes')
    (tmp_path / 'corrupt.pth').write_text('no checkpoint at all')
    predictor = Predictor(
        {'fcvit_tiny_shapes': good, 'corrupt': Model(good.config, str(tmp_path / 'corrupt.pth'))},
        'cpu',
    )
    page = build_page(predictor, max_bytes=2**20, max_pixels=10**6)
    server, listening = build_server(page, 2**20), open_port('127.0.0.1', 0)
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listening]), daemon=True)
    thread.start()
    deadline = time.time() + 60
    while not server.started and time.time() < deadline:
        time.sleep(0.05)
    yield f'http://127.0.0.1:{listening.getsockname()[1]}/'
    server.should_exit = True
    thread.join(20)
    listening.close()


@pytest.fixture
def server(tmp_path):
    """Context manager that serves the page with a valid model and a corrupt one, and returns its URL."""
    return serve(tmp_path)


@pytest.fixture
def served(server):
    with server as url:
        yield url
