"""The report has its sections for networks of all tasks; a browser shows it completely and downloads nothing."""

import copy
import json
import re
import shutil

import pytest

from fcvit_mm.analysis import report
from fcvit_mm.analysis.recording import AnalysisError
from fcvit_mm.analysis.report import SECTIONS, write_report
from fcvit_mm.apis.load import load_network
from fcvit_mm.files import write_atomic

TITLES = [title for title, _, _ in SECTIONS]
IMAGES = {'classification': 'val/*/*', 'detection': 'val2017/*', 'segmentation': 'images/validation/*'}


def images_of(result, task, count=2):
    return sorted(map(str, result.data.glob(IMAGES[task])))[:count]


@pytest.fixture
def page_file(trained, tmp_path_factory, monkeypatch):
    """The report of a classifier, written once."""
    path = tmp_path_factory.getbasetemp() / 'page' / 'report.html'
    if not path.exists():
        result = trained('classification')
        monkeypatch.setattr(report, 'DRAWN', 1)
        monkeypatch.setattr(report, 'DPI', 40)
        network = load_network(result.config, result.checkpoint)
        blocks = network.model.backbone.stages[2].blocks
        blocks.extend([copy.deepcopy(blocks[0]) for _ in range(8)])  # enough rows for a collapsed table
        write_atomic(path, write_report(network, result.config, images_of(result, 'classification')).encode())
    return path


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """Chromium without a window; it records requests and errors."""
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


def only(monkeypatch, *titles):
    """Restrict the report to these sections, because each takes seconds."""
    monkeypatch.setattr(report, 'SECTIONS', [section for section in SECTIONS if section[0] in titles])


def test_report_of_a_classifier_has_all_sections(page_file, trained, parse_page):
    pytest.importorskip('pytorch_grad_cam')
    page = page_file.read_text()
    found = parse_page(page)
    assert found.headings == TITLES
    assert all(address.startswith(('data:', '#section-')) for address in found.addresses)
    # An analysis that does not apply is skipped with the reason.
    assert page.count('Not shown:') == 1 and 'has no attention maps that can be computed, expected a ViT' in page
    assert '<title>Analysis of classification</title>' in page and trained('classification').checkpoint in page
    assert len(set(found.alts)) == len(found.alts) >= 7
    # Numbers for the classes of the checkpoint, one row per image.
    assert all(f'<th scope="row">{i}: ' in page for i in (1, 2))
    assert re.search(r'(circle|cross|square|star|triangle) \d+\.\d%', page)


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_report_of_detectors_and_segmentors(trained, monkeypatch, parse_page, task):
    result = trained(task)
    only(monkeypatch, 'Network', 'Predictions', 'Class activation maps')
    network = load_network(result.config, result.checkpoint)
    page = write_report(network, result.config, images_of(result, task, 1))
    found = parse_page(page)
    assert found.headings == ['Network', 'Predictions', 'Class activation maps'] and len(found.alts) == 1
    assert page.count('Not shown:') == 1 and 'is not a classifier' in page
    untrained = write_report(network._replace(checkpoint=None), result.config, images_of(result, task, 1))
    assert 'random weights, so its predictions are meaningless: give a checkpoint' in untrained


def test_report_of_a_transformer(trained, monkeypatch):
    pytest.importorskip('timm')
    only(monkeypatch, 'Network', 'Similarity maps', 'Attention maps', 'Query irrelevance and sparsity')
    network = load_network('timm:vit_tiny_patch16_224', options=dict(img_size=48, depth=2))
    page = write_report(
        network, 'timm:vit_tiny_patch16_224', images_of(trained('classification'), 'classification', 1), (48, 48)
    )
    assert 'random: no checkpoint was given' in page and page.count('Not shown:') == 1
    assert 'has no similarity maps' in page and 'Cosine similarity of the maps of two queries' in page


def test_report_names_published_weights(trained, monkeypatch):
    """Published weights given by name have no date, because the name is not a file."""
    only(monkeypatch, 'Network')
    result = trained('classification')
    network = load_network(result.config, result.checkpoint)
    images = images_of(result, 'classification', 1)
    page = write_report(network._replace(checkpoint='published:fcvit_tiny'), result.config, images)
    assert '<td>published:fcvit_tiny</td>' in page
    assert f'{result.checkpoint}, written 20' in write_report(network, result.config, images)


def test_browser_shows_the_complete_report(page_file, browser):
    browser.get(page_file.as_uri())
    assert browser.title == 'Analysis of classification'
    images = browser.execute_script('return Array.from(document.images, each => [each.complete, each.naturalWidth])')
    assert len(images) >= 7 and all(complete and width > 0 for complete, width in images)
    assert browser.execute_script('return document.querySelectorAll("section h2").length') == len(TITLES)
    # Nothing is wider than the window, and collapsed tables can be opened.
    assert browser.execute_script('return document.documentElement.scrollWidth <= window.innerWidth')
    table = browser.find_element('css selector', 'details table')
    assert not table.is_displayed()
    browser.find_element('css selector', 'summary').click()
    assert table.is_displayed()
    assert browser.get_log('browser') == []
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    # Only requests of this page: Chromium's start page may still be loading.
    fetched = [
        event['params']['request']['url']
        for event in events
        if event['method'] == 'Network.requestWillBeSent' and event['params']['documentURL'] == page_file.as_uri()
    ]
    assert [url for url in fetched if not url.startswith('data:')] == [page_file.as_uri()]


def test_report_without_images_is_refused():
    with pytest.raises(AnalysisError, match='no images given, expected at least one: give image files'):
        write_report(None, 'config.py', [])
