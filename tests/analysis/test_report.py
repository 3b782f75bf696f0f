"""The page: what it holds, and that a browser shows all of it and fetches nothing."""

import json
import re
import shutil
import struct
import zlib
from html.parser import HTMLParser

import pytest
import torch

from fcvit_mm.analysis import report
from fcvit_mm.analysis.page import Image, Section, Table, render
from fcvit_mm.analysis.probe import AnalysisError
from fcvit_mm.analysis.report import SECTIONS, write_report
from fcvit_mm.apis.load import load_network
from fcvit_mm.errors import UserError

TITLES = [title for title, _, _ in SECTIONS]
IMAGES = {'classification': 'val/*/*', 'detection': 'val2017/*', 'segmentation': 'images/validation/*'}


class Reader(HTMLParser):
    """Addresses, headings and the text of a page's sections."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.headings, self.open, self.alts = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[key] for key in ('src', 'href', 'srcset', 'action') if key in attributes]
        if tag == 'img':
            self.alts.append(attributes['alt'])
        assert tag not in ('script', 'iframe', 'object', 'embed')
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] == 'h2':
            self.headings.append(re.sub(r'^\d+\. ', '', data))


def tiny_png():
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b'\0\0\0\xff'))
        + chunk(b'IEND', b'')
    )


def images_of(result, task, count=2):
    return sorted(map(str, result.data.glob(IMAGES[task])))[:count]


@pytest.fixture
def page_file(trained, command, tmp_path_factory, monkeypatch):
    """The page of a classifier, as the command writes it; made once."""
    path = tmp_path_factory.getbasetemp() / 'page' / 'report_classification.html'
    if not path.exists():
        result = trained('classification')
        monkeypatch.setattr(report, 'DRAWN', 1)
        monkeypatch.setattr(report, 'DPI', 40)
        command('report').main(
            [result.config, result.checkpoint, *images_of(result, 'classification'), '--out', str(path.parent)]
        )
    return path


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """Chromium without a window, that notes what it fetches and what it complains of."""
    webdriver = pytest.importorskip('selenium.webdriver')
    binary = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if not binary or not driver:
        pytest.skip('no Chromium with chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
        '--window-size=1200,900',
        f'--user-data-dir={tmp_path_factory.mktemp("chromium")}',
    ):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


def test_everything_is_escaped():
    nasty = '<script>alert("x")</script> & \'quotes\''
    table = Table(nasty, [nasty], [[nasty, nasty]] * 9)
    page = render(
        nasty,
        nasty,
        [Section(nasty, [nasty], [nasty], [Image(tiny_png(), nasty)], [table], nasty), Section(nasty, reason=nasty)],
    )
    reader = Reader(page)  # refuses scripts
    assert '<script' not in page and reader.alts == [nasty]
    assert [address[:10] for address in reader.addresses] == ['data:,', '#section-1', '#section-2', 'data:image']


def only(monkeypatch, *titles):
    """Leave the sections out that a test does not ask about: each takes seconds."""
    monkeypatch.setattr(report, 'SECTIONS', [section for section in SECTIONS if section[0] in titles])


def test_whole_page(page_file, trained):
    pytest.importorskip('pytorch_grad_cam')
    page = page_file.read_text()
    reader = Reader(page)
    assert reader.headings == TITLES
    assert all(address.startswith(('data:', '#section-')) for address in reader.addresses)
    # What does not apply says why, in its place.
    assert page.count('Not shown:') == 1 and 'has no attention that can be shown, expected a ViT' in page
    assert '<title>Analysis of classification</title>' in page and trained('classification').checkpoint in page
    assert len(set(reader.alts)) == len(reader.alts) >= 7
    # Numbers of the checkpoint's own classes, a row for each image.
    assert all(f'<th scope="row">{i}: ' in page for i in (1, 2))
    assert re.search(r'(circle|cross|square|star|triangle) \d+\.\d%', page)


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_other_tasks(trained, monkeypatch, task):
    result = trained(task)
    only(monkeypatch, 'The network', 'Predictions', 'Class activation maps')
    network = load_network(result.config, result.checkpoint)
    page = write_report(network, result.config, images_of(result, task, 1))
    reader = Reader(page)
    assert reader.headings == ['The network', 'Predictions', 'Class activation maps'] and len(reader.alts) == 1
    assert page.count('Not shown:') == 1 and 'is no classifier' in page
    untrained = write_report(network._replace(checkpoint=None), result.config, images_of(result, task, 1))
    assert 'random weights, which predict nothing: give a checkpoint' in untrained


def test_transformer(trained, monkeypatch):
    pytest.importorskip('timm')
    only(monkeypatch, 'The network', 'Similarity maps', 'Attention maps', 'Query-irrelevance and sparsity')
    network = load_network('timm:vit_tiny_patch16_224', options=dict(img_size=48, depth=2))
    page = write_report(
        network, 'timm:vit_tiny_patch16_224', images_of(trained('classification'), 'classification', 1), (48, 48)
    )
    assert 'random: no checkpoint was given' in page and page.count('Not shown:') == 1
    assert 'has no similarity to show' in page and 'Cosine similarity of the maps of two queries' in page


def test_browser_shows_it_all(page_file, browser):
    browser.get(page_file.as_uri())
    assert browser.title == 'Analysis of classification'
    images = browser.execute_script('return Array.from(document.images, each => [each.complete, each.naturalWidth])')
    assert len(images) >= 7 and all(complete and width > 0 for complete, width in images)
    assert browser.execute_script('return document.querySelectorAll("section h2").length') == len(TITLES)
    # Nothing sticks out to the side, and folded tables open.
    assert browser.execute_script('return document.documentElement.scrollWidth <= window.innerWidth')
    table = browser.find_element('css selector', 'details table')
    assert not table.is_displayed()
    browser.find_element('css selector', 'summary').click()
    assert table.is_displayed()
    assert browser.get_log('browser') == []
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    # Of this page: Chromium's own first page may still be loading.
    fetched = [
        event['params']['request']['url']
        for event in events
        if event['method'] == 'Network.requestWillBeSent' and event['params']['documentURL'] == page_file.as_uri()
    ]
    assert [url for url in fetched if not url.startswith('data:')] == [page_file.as_uri()]


def test_what_gives_no_page(trained, command, tmp_path):
    result = trained('classification')
    network = load_network(result.config, result.checkpoint)
    with pytest.raises(AnalysisError, match='no images, expected at least one'):
        write_report(network, result.config, [])
    (tmp_path / 'broken.png').write_bytes(tiny_png()[:40])
    with pytest.raises(UserError, match='broken.png does not decode'):
        command('report').main(
            [result.config, result.checkpoint, str(tmp_path / 'broken.png'), '--out', str(tmp_path / 'out')]
        )
    assert not (tmp_path / 'out').exists()


def test_random_weights_are_the_same_each_time():
    pytest.importorskip('timm')
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = (load_network('timm:vit_tiny_patch16_224', options=dict(img_size=32, depth=1)) for _ in range(2))
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))
    assert torch.equal(torch.random.get_rng_state(), before)
