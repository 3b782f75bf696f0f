"""The server of the page: its port, and the requests that it refuses."""

import json
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from fcvit_mm.app.server import open_port
from fcvit_mm.errors import UserError


def test_port_in_use_is_reported():
    with open_port('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'cannot listen on 127.0.0.1, port {port} .* --host and --port'):
            open_port('127.0.0.1', port)
    with pytest.raises(UserError, match='cannot listen on 192.0.2.1'):
        open_port('192.0.2.1', None)


def test_page_requests_no_other_hosts(served):
    with OPENER.open(served, timeout=20) as answer:
        assert "default-src 'self'" in answer.headers['Content-Security-Policy']
        assert b'api.gradio.app' not in answer.read()


#: Does not use the proxies of the environment.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(served, index, *data):
    """Call a function of the page, by its position in ``build_page``, as the browser does."""
    body = json.dumps(dict(data=data, fn_index=index, session_hash='a')).encode()
    join = urllib.request.Request(f'{served}gradio_api/queue/join', body, {'Content-Type': 'application/json'})
    OPENER.open(join, timeout=20).close()
    with OPENER.open(f'{served}gradio_api/queue/data?session_hash=a', timeout=60) as answers:
        answer = next(line for line in answers if b'process_completed' in line)
    return json.loads(answer[len('data: ') :])


def test_only_uploaded_files_are_opened(served, tmp_path):
    """A forged request that names a file of the machine instead of an upload."""
    cv2.imwrite(str(tmp_path / 'private.png'), np.zeros((9, 9, 3), np.uint8))
    upload = dict(path=str(tmp_path / 'private.png'), meta={'_type': 'gradio.FileData'})
    assert call(served, 0, 'fcvit_tiny_shapes', upload)['success'] is False
    shown = urllib.request.Request(f'{served}gradio_api/file={tmp_path}/private.png')
    with pytest.raises(urllib.error.HTTPError, match='403'):
        OPENER.open(shown, timeout=20)


def test_images_of_visitors_are_deleted_when_the_server_ends(server, tmp_path, monkeypatch):
    """Uploads, predictions, and the maps that a visitor selects."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'visitors'))
    _, image = cv2.imencode('.png', np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + image.tobytes()
    with server as served:
        send = urllib.request.Request(
            f'{served}gradio_api/upload', body + b'\r\n--x--\r\n', {'Content-Type': 'multipart/form-data; boundary=x'}
        )
        with OPENER.open(send, timeout=20) as answer:
            path = json.load(answer)[0]
        upload = dict(path=path, orig_name='a.png', meta={'_type': 'gradio.FileData'})
        layer = call(served, 0, 'fcvit_tiny_shapes', upload)['output']['data'][3]
        before = list((tmp_path / 'visitors').rglob('*.png'))
        assert len(before) == 2 + 9  # the upload, the prediction, and the maps: the mean and 8 heads
        assert layer['choices'][0][0] != layer['value']
        assert call(served, 2, None, layer['choices'][0][0])['success']
        assert len(list((tmp_path / 'visitors').rglob('*.png'))) == len(before) + 9
    assert not list((tmp_path / 'visitors').rglob('*.png'))
