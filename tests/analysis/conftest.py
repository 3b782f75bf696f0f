"""Networks of this project's configs, and a parser for HTML pages."""

import re
from functools import lru_cache
from html.parser import HTMLParser

import pytest
from harness import ROOT

from fcvit_mm.apis.load import load_network

#: One config of each library.
CONFIGS = {
    'mmpretrain': 'classification/fcvit_tiny_in1k.py',
    'mmdet': 'detection/mask_rcnn_fcvit_tiny_coco.py',
    'mmseg': 'segmentation/upernet_fcvit_tiny_ade20k.py',
}


class Page(HTMLParser):
    """Parsed HTML page: its URLs, headings and alternative texts. Scripts and frames are not allowed."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.headings, self.open, self.alts = [], [], [], []
        self.feed(text)

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


@pytest.fixture(scope='session')
def parse_page():
    """Return the parser of pages."""
    return Page


@lru_cache(maxsize=None)
def _build(path):
    return load_network(path)


@pytest.fixture(scope='session')
def project_network():
    """Return a function that loads a network for a library, with random weights. Do not change the networks."""

    def get(library):
        pytest.importorskip(library)
        return _build(str(ROOT / 'configs' / CONFIGS[library]))

    return get
