"""The page: its messages, and its use in a browser."""

import json
import shutil
import sys

import cv2
import numpy as np
import pytest
from image_files import write_bomb

from fcvit_mm.app.page import format_message, import_gradio
from fcvit_mm.errors import UserError


def test_text_on_the_page_is_escaped():
    assert '<script>' not in format_message('<script>a</script>.png is empty.', problem=True)


def test_missing_gradio_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(UserError, match=r"Gradio, which is not installed: in .* -e '.\[app\]'"):
        import_gradio()


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

    # Elements may be replaced before they are read.
    return WebDriverWait(driver, seconds, 0.2, [StaleElementReferenceException]).until(condition)


def test_page_in_a_browser(served, browser, tmp_path):
    from selenium.webdriver.common.by import By

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def message(text):
        return wait(browser, lambda _: [each.text for each in find('#message .message') if text in each.text])[0]

    def drop(path):
        clear = find('#image button[aria-label="Clear"], #image button[aria-label="Remove Image"]')
        if clear:
            clear[0].click()
        wait(browser, lambda _: find('#image input[type=file]'))[0].send_keys(str(path))

    image = np.full((120, 160, 3), 230, np.uint8)
    cv2.circle(image, (80, 60), 40, (40, 40, 200), -1)
    cv2.imwrite(str(tmp_path / 'circle.png'), image)
    (tmp_path / 'corrupt.png').write_text('not an image')
    write_bomb(tmp_path / 'bomb.png', 2000, 2000)
    np.save(tmp_path / 'large.npy', np.random.default_rng(0).integers(0, 255, 2**21, np.uint8))
    shutil.move(tmp_path / 'large.npy', tmp_path / 'large.png')

    browser.get(served)
    drop(tmp_path / 'circle.png')
    assert 'an image of 160x120 pixels' in message('similarity maps')
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

    drop(tmp_path / 'corrupt.png')
    assert 'corrupt.png cannot be opened as an image' in message('cannot be opened')
    assert not find('#prediction img')
    drop(tmp_path / 'bomb.png')
    assert 'bomb.png has 2000x2000 pixels' in message('bomb.png')
    drop(tmp_path / 'large.png')
    wait(browser, lambda _: any('size' in each.text for each in find('.toast-body, [role=alert]')))
    # A model that cannot be loaded has a message, and the page remains usable.
    find('#model input')[0].click()
    wait(browser, lambda _: [each for each in find('ul[role=listbox] li') if each.text == 'corrupt'])[0].click()
    drop(tmp_path / 'circle.png')
    message('corrupt.pth is text that begins with')
    assert 'Traceback' not in browser.page_source

    # Only requests of this page: the start page of the browser sends other requests.
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    urls = {
        each['params']['request']['url']
        for each in events
        if each['method'] == 'Network.requestWillBeSent' and each['params']['documentURL'].startswith(served)
    }
    elsewhere = {url for url in urls if not url.startswith((served, 'data:', 'blob:'))}
    assert len(urls) > 10 and not elsewhere
