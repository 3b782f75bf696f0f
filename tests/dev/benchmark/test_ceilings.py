"""The measured maximum throughput and bandwidth of the machine."""

import torch


def test_ceilings_are_the_best_of_several_shapes(load, monkeypatch):
    ceilings = load('ceilings')
    seconds = iter([2.0, 1.0, 4.0])  # for the copy, then for a product in each of two shapes
    monkeypatch.setattr(ceilings, 'best', lambda call, device, times=5: next(seconds))
    products = [('small', 8, None), ('large', 64, None)]
    monkeypatch.setattr(ceilings, '_products', lambda device, dtype: iter(products))
    found = ceilings.measure_ceilings(torch.device('cpu'), {'float32': torch.float32})
    assert found.multiply_adds == {'float32': 64.0} and found.shapes == {'float32': 'large'}
    assert found.bandwidth == 2 * 256 * 2**20 / 4


def test_ceiling_of_a_dtype_that_the_cpu_lacks_is_that_of_float32(load, monkeypatch):
    ceilings = load('ceilings')
    used = []
    monkeypatch.setattr(ceilings, 'best', lambda call, device, times=5: 1.0)
    monkeypatch.setattr(ceilings, 'cpu_convolves', lambda dtype: False)
    monkeypatch.setattr(ceilings, '_products', lambda device, dtype: used.append(dtype) or [('one', 1, None)])
    ceilings.measure_ceilings(torch.device('cpu'), {'bfloat16': torch.bfloat16})
    assert used == [torch.float32]


def test_products_count_their_multiply_adds(load):
    name, macs, call = next(load('ceilings')._products(torch.device('cpu'), torch.float32))
    assert (name, macs) == ('1024x1024 by 1024x1024', 1024**3) and call().shape == (1024, 1024)
