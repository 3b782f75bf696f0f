"""tools/app.py: what it takes and refuses, and one look at the page in a real browser."""

import json
import runpy
import shutil
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib

import cv2
import numpy as np
import pytest
import torch
from harness import ROOT, write_config

from fcvit_mm.app.page import (
    Model,
    Predictor,
    UploadError,
    build_page,
    build_server,
    find_models,
    import_gradio,
    open_port,
    read_upload,
    shrink,
    tell,
)
from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.errors import UserError
from fcvit_mm.preflight.checks import PreflightError


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(ROOT / 'tools' / 'app.py'))


def write_bomb(path, width, height):
    """A PNG of a few bytes that says it is enormous."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')
    )


def cut(path):
    cv2.imwrite(str(path.with_suffix('.jpg')), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.with_suffix('.jpg').read_bytes()[:2000])


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: path.write_bytes(b''), 'holiday.png is empty'),
        (
            lambda path: path.write_text('not an image'),
            'does not open as an image: it is broken, cut off, or of another',
        ),
        (cut, 'does not open as an image'),
        (
            lambda path: path.write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n'),
            'of another kind than',
        ),
        (lambda path: path.write_bytes(bytes(2**20 + 1)), r'has 1.0 MiB, more than the 1 MiB that are taken'),
        (lambda path: write_bomb(path, 9000, 8000), 'has 9000x8000 pixels, more than the 50 million'),
        (lambda path: write_bomb(path, 2**30, 2**30), 'unfolds to far more than the 50 million pixels'),
    ],
)
def test_uploads_that_are_refused(make, message, tmp_path):
    make(tmp_path / 'upload')
    with pytest.raises(UploadError, match=message) as error:
        read_upload(str(tmp_path / 'upload'), 'holiday.png', max_bytes=2**20)
    assert str(tmp_path) not in str(error.value)


def test_images_come_in_as_they_are(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    shutil.move(tmp_path / 'a.png', tmp_path / 'called.jpg')
    np.testing.assert_array_equal(read_upload(str(tmp_path / 'called.jpg'), 'called.jpg'), image)
    assert shrink(image) is image
    assert shrink(image, 20).shape == (15, 20, 3)
    assert shrink(np.zeros((1, 4000, 3), np.uint8), 100).shape == (1, 100, 3)


def write_model(folder, name):
    """A classifier with random weights, as a run of tools/train.py leaves it."""
    from fcvit_mm.apis.count import build_model
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


def test_models_to_choose_from(tmp_path):
    for name in ('first', 'second', 'no_checkpoint'):
        (tmp_path / name).mkdir()
        (tmp_path / name / f'{name}.py').touch()
    for path in ('first/epoch_1.pth', 'first/best_accuracy_top1_epoch_1.pth', 'first/epoch_2.pth', 'second/iter_4.pth'):
        (tmp_path / path).touch()
    found = find_models([], str(tmp_path))
    assert list(found) == ['first', 'second']
    assert found['first'].checkpoint.endswith('best_accuracy_top1_epoch_1.pth')
    pair = [str(tmp_path / 'first/first.py'), str(tmp_path / 'first/epoch_1.pth')]
    assert list(find_models([*pair, *pair])) == ['first', 'first, epoch_1.pth']
    for pairs, runs, message in [
        ([], None, 'no model: give a config and a checkpoint, or --runs'),
        (pair[:1], None, 'first.py stands alone: give pairs'),
        (['nowhere.py', pair[1]], None, 'config nowhere.py does not exist'),
        ([pair[0], 'nowhere.pth'], None, 'checkpoint nowhere.pth does not exist'),
        ([], 'nowhere', '--runs nowhere is not a folder'),
        ([], str(tmp_path / 'no_checkpoint'), 'no run in .*no_checkpoint: expected folders of tools/train.py'),
    ]:
        with pytest.raises(UserError, match=message):
            find_models(pairs, runs)


def test_models_that_cannot_be_loaded(tool, tmp_path):
    pytest.importorskip('mmpretrain')
    config = write_config('classification', tmp_path, tmp_path)
    (tmp_path / 'a.pth').write_text('no checkpoint at all')
    predictor = Predictor({'broken': Model(str(config), str(tmp_path / 'a.pth'))})
    with pytest.raises(PreflightError, match='a.pth is text that begins with'):
        predictor.load('broken')
    with pytest.raises(UserError, match="there is no model 'other', but broken"):
        predictor.load('other')
    # MMEngine would warn alone, and random layers give random predictions.
    torch.save(dict(state_dict={'backbone.stem.proj.weight': torch.ones(1)}), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='a.pth does not fit the config'):
        Predictor(predictor.models, tool['similarity_of'], 'cpu').load('broken')


def test_text_on_the_page_is_no_markup():
    assert '<script>' not in tell('<script>a</script>.png is empty.', problem=True)


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(UserError, match=r"Gradio, which is not installed: pip install 'fcvit_mm\[app\]'"):
        import_gradio()


def test_port_that_is_taken():
    with open_port('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'cannot listen on 127.0.0.1, port {port} .* --host and --port'):
            open_port('127.0.0.1', port)
    with pytest.raises(UserError, match='cannot listen on 192.0.2.1'):
        open_port('192.0.2.1', None)


def test_arguments(tool):
    assert tool['parse_args']([]).host == '127.0.0.1'
    with pytest.raises(UserError, match='--max-megapixels 0: expected more than 0'):
        tool['parse_args'](['--max-megapixels', '0'])
    pytest.importorskip('gradio')
    with pytest.raises(UserError, match='config nowhere.py does not exist'):
        tool['main'](['nowhere.py', 'nowhere.pth'])


@pytest.fixture
def served(tool, tmp_path):
    """The page of tools/app.py with a model that works and one that does not, and its address."""
    pytest.importorskip('gradio')
    pytest.importorskip('mmpretrain')
    good = write_model(tmp_path / 'run', 'fcvit_tiny_shapes')
    (tmp_path / 'broken.pth').write_text('no checkpoint at all')
    predictor = Predictor(
        {'fcvit_tiny_shapes': good, 'broken': Model(good.config, str(tmp_path / 'broken.pth'))},
        tool['similarity_of'],
        'cpu',
    )
    page = build_page(predictor, tool['draw_similarity'], max_bytes=2**20, max_pixels=10**6)
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
def browser(tmp_path):
    pytest.importorskip('selenium')
    if not shutil.which('chromium') or not shutil.which('chromedriver'):
        pytest.skip('needs chromium and chromedriver')
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in (
        'headless',
        'no-sandbox',
        'disable-gpu',
        'disable-quic',
        'no-first-run',
        'disable-sync',
        'disable-background-networking',
        'disable-component-update',
        'disable-dev-shm-usage',
        'window-size=1280,1150',
        f'user-data-dir={tmp_path / "profile"}',
    ):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    driver = webdriver.Chrome(options, Service(shutil.which('chromedriver')))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def wait(driver, condition, seconds=60):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    # What is found may be replaced before it is read.
    return WebDriverWait(driver, seconds, 0.2, [StaleElementReferenceException]).until(condition)


def test_in_a_browser(served, browser, tmp_path):
    from selenium.webdriver.common.by import By

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def told(text):
        return wait(browser, lambda _: [each.text for each in find('#told .told') if text in each.text])[0]

    def drop(path):
        clear = find('#image button[aria-label="Clear"], #image button[aria-label="Remove Image"]')
        if clear:
            clear[0].click()
        wait(browser, lambda _: find('#image input[type=file]'))[0].send_keys(str(path))

    image = np.full((120, 160, 3), 230, np.uint8)
    cv2.circle(image, (80, 60), 40, (40, 40, 200), -1)
    cv2.imwrite(str(tmp_path / 'circle.png'), image)
    (tmp_path / 'broken.png').write_text('not an image')
    write_bomb(tmp_path / 'bomb.png', 2000, 2000)
    np.save(tmp_path / 'large.npy', np.random.default_rng(0).integers(0, 255, 2**21, np.uint8))
    shutil.move(tmp_path / 'large.npy', tmp_path / 'large.png')

    browser.get(served)
    drop(tmp_path / 'circle.png')
    assert 'an image of 160x120 pixels' in told('similarity maps')
    shown = wait(browser, lambda _: find('#prediction img'))[0]
    wait(browser, lambda _: shown.get_property('naturalWidth'))
    maps = wait(browser, lambda _: find('#maps .grid-wrap img, #maps button img'))
    assert len(maps) == 1 + 8  # the mean, and the heads
    first = maps[0].get_attribute('src')
    find('#layer input')[0].click()
    wait(browser, lambda _: [each for each in find('ul[role=listbox] li') if 'stage 1, block 1, mix 1' in each.text])[
        0
    ].click()
    wait(browser, lambda _: find('#maps img')[0].get_attribute('src') != first)
    browser.save_screenshot(str(tmp_path / 'app.png'))
    assert cv2.imread(str(tmp_path / 'app.png')).std() > 10

    drop(tmp_path / 'broken.png')
    assert 'broken.png does not open as an image' in told('does not open')
    assert not find('#prediction img')
    drop(tmp_path / 'bomb.png')
    assert 'bomb.png has 2000x2000 pixels' in told('bomb.png')
    drop(tmp_path / 'large.png')
    wait(browser, lambda _: any('size' in each.text for each in find('.toast-body, [role=alert]')))
    # A model that cannot be loaded: its own message, and the page goes on.
    find('#model input')[0].click()
    wait(browser, lambda _: [each for each in find('ul[role=listbox] li') if each.text == 'broken'])[0].click()
    drop(tmp_path / 'circle.png')
    told('broken.pth is text that begins with')
    assert 'Traceback' not in browser.page_source

    # Of this page: the one that a browser starts with asks for this and that.
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    urls = {
        each['params']['request']['url']
        for each in events
        if each['method'] == 'Network.requestWillBeSent' and each['params']['documentURL'].startswith(served)
    }
    elsewhere = {url for url in urls if not url.startswith((served, 'data:', 'blob:'))}
    assert len(urls) > 10 and not elsewhere


def test_other_hosts_are_ruled_out(served):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(served, timeout=20) as answer:
        assert "default-src 'self'" in answer.headers['Content-Security-Policy']
        assert b'api.gradio.app' not in answer.read()


def test_only_uploads_are_opened(served, tmp_path):
    """A request that no page makes: a file of the machine in the place of an upload."""
    cv2.imwrite(str(tmp_path / 'private.png'), np.zeros((9, 9, 3), np.uint8))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    upload = dict(path=str(tmp_path / 'private.png'), meta={'_type': 'gradio.FileData'})
    body = dict(data=['fcvit_tiny_shapes', upload], fn_index=0, session_hash='a')
    opener.open(
        urllib.request.Request(
            f'{served}gradio_api/queue/join', json.dumps(body).encode(), {'Content-Type': 'application/json'}
        ),
        timeout=20,
    ).close()
    with opener.open(f'{served}gradio_api/queue/data?session_hash=a', timeout=60) as answers:
        answer = next(line for line in answers if b'process_completed' in line)
    assert json.loads(answer[len('data: ') :])['success'] is False
    shown = urllib.request.Request(f'{served}gradio_api/file={tmp_path}/private.png')
    with pytest.raises(urllib.error.HTTPError, match='403'):
        opener.open(shown, timeout=20)
