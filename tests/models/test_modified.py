"""Modified networks: replaced, hooked, pruned, parametrized, adapted or transformed modules take effect."""

import copy
import re
import warnings

import pytest
import torch
import torch.nn as nn
import torch.nn.modules.module as nn_module
from networks import NETWORKS, build, images, randomize_norms
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

import fcvit_mm
from fcvit_mm.models.layers import Conv2d
from fcvit_mm.ops import use_ops

#: Containers and networks that a forward pass does not call as modules.
UNCALLED = (nn.ModuleList, nn.ModuleDict)
CONVOLUTIONAL = [name for name in NETWORKS if 'fcvit' in name or 'dwnet' in name]


def make(name, **options):
    return randomize_norms(build(NETWORKS[name], **options))


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def assert_close(actual, expected):
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def differ(a, b):
    return any((x - y).abs().max() > 1e-4 for x, y in zip(a, b))


def called_modules(model):
    return {name: module for name, module in model.named_modules() if not isinstance(module, UNCALLED)}


def same_modules_of_all_stages(model):
    """Yield groups of modules, name -> module: those of the same name in all stages, which can be changed together."""
    groups = {}
    for name, module in called_modules(model).items():
        groups.setdefault(re.sub(r'^(stages\.|norm)\d', r'\1*', name), {})[name] = module
    yield from groups.values()


@pytest.mark.parametrize('name, classifier', [*((name, False) for name in NETWORKS), ('vit', True), ('cait', True)])
def test_every_hook_fires(name, classifier):
    model = make(name, **(NETWORKS[name].classifier if classifier else {}))
    x, missed = images(8, 8, batch=1), []
    for modules in same_modules_of_all_stages(model):
        fired, handles = {module_name: set() for module_name in modules}, []
        for module_name, module in modules.items():
            seen = fired[module_name]
            handles.append(module.register_forward_hook(lambda *_, seen=seen: seen.add('after')))
            handles.append(module.register_forward_pre_hook(lambda *_, seen=seen: seen.add('before')))
        outputs(model, x)
        for handle in handles:
            handle.remove()
        missed += [each for each in fired.items() if len(each[1]) < 2]
    assert not missed


@pytest.mark.parametrize('name', NETWORKS)
def test_backward_hooks_and_replaced_forwards_are_called(name):
    model, missed = make(name), []
    x = images(8, 8, batch=1).requires_grad_()
    for modules in same_modules_of_all_stages(model):
        fired = {module_name: [] for module_name in modules}
        for module_name, module in modules.items():
            seen = fired[module_name]
            module.forward = lambda *args, own=module.forward, seen=seen: (seen.append(True), own(*args))[1]
        outputs(model, x)
        for module in modules.values():
            del module.forward
        missed += [(module_name, 'forward') for module_name in modules if not fired[module_name]]
    fired, handles = set(), []
    leaves = {name: module for name, module in called_modules(model).items() if not list(module.children()) and name}
    for module_name, module in leaves.items():
        handles.append(module.register_full_backward_hook(lambda *_, name=module_name: fired.add(name)))
    sum(y.square().sum() for y in model(x)).backward()
    assert not missed and fired == set(leaves)


@pytest.mark.parametrize('name', NETWORKS)
def test_global_hooks_see_every_module(name):
    model, seen = make(name), set()
    handle = nn_module.register_module_forward_hook(lambda module, args, output: seen.add(module))
    try:
        outputs(model, images(16, 24))
    finally:
        handle.remove()
    assert {name for name, module in called_modules(model).items() if module not in seen} == set()


@pytest.mark.parametrize('name', NETWORKS)
def test_replaced_activations_and_softmax_take_effect(name):
    model, x = make(name), images(16, 16, batch=1)
    before = outputs(model, x)
    for module_name, module in list(model.named_modules()):
        if isinstance(module, (nn.GELU, nn.ReLU, nn.Softmax)):
            parent, _, leaf = module_name.rpartition('.')
            setattr(model.get_submodule(parent), leaf, nn.Tanh())
            after = outputs(model, x)
            with use_ops('reference'):
                assert_close(after, outputs(model, x))
            assert differ(before, after), module_name
            setattr(model.get_submodule(parent), leaf, module)


def test_gelus_set_to_tanh_take_effect():
    model = make('fcvit')
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = 'tanh'
    other = copy.deepcopy(model)
    for module in other.modules():
        module.register_forward_pre_hook(lambda *_: None)  # nothing is fused
    for a, b in zip(outputs(model, images(16, 24)), outputs(other, images(16, 24))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert differ(outputs(make('fcvit'), images(16, 24)), outputs(model, images(16, 24)))


@pytest.mark.parametrize('name', NETWORKS)
def test_dropouts_replaced_by_identities(name):
    model = make(name).train()
    for module_name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            parent, _, leaf = module_name.rpartition('.')
            setattr(model.get_submodule(parent), leaf, nn.Identity())
    assert_close(model.eval()(images(16, 24)), outputs(make(name), images(16, 24)))
    model.train()(images(16, 24))


@pytest.mark.parametrize('name', NETWORKS)
def test_dropouts_in_training_mode_take_effect(name):
    model = make(name)
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    expected = outputs(model, images(16, 24))
    for dropout in dropouts:
        dropout.p = 0.5
        dropout.train()
        assert differ(outputs(model, images(16, 24)), expected)
        dropout.eval()


def test_changed_dilation_padding_and_stride_take_effect():
    x = torch.randn(2, 6, 12, 9)
    for change in (
        dict(dilation=(2, 2), padding=(2, 2)),
        dict(padding_mode='circular', _reversed_padding_repeated_twice=[1] * 4),
        dict(padding='same'),
        dict(stride=(2, 2)),
    ):
        for groups in (1, 6):
            conv = Conv2d(6, 6, 3, padding=1, groups=groups)
            vars(conv).update(change)
            torch.testing.assert_close(conv(x), nn.Conv2d.forward(conv, x))
    model, other = make('fcvit'), make('fcvit')
    for module in (*model.modules(), *other.modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.groups > 1:
            module.dilation = module.padding = (2, 2)
    for module in other.modules():
        module.register_forward_pre_hook(lambda *_: None)
    assert_close(outputs(model, images(64, 64)), outputs(other, images(64, 64)))


# -- optimize_for_inference --------------------------------------------------------------------------------------------


def _convolutions_and_linears(model):
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def pruned(model):
    for layer in _convolutions_and_linears(model):
        prune.l1_unstructured(layer, 'weight', 0.4)


def pruned_in_structure(model):
    for layer in _convolutions_and_linears(model):
        prune.ln_structured(layer, 'weight', 0.3, n=2, dim=0)


def scales_pruned(model):
    for module in list(model.modules()):
        for name in ('weight', 'layer_scale2'):
            parameter = module._parameters.get(name)
            if parameter is not None and parameter.ndim == 1:
                prune.random_unstructured(module, name, 0.4)


def weight_normed(model):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for layer in _convolutions_and_linears(model):
            nn.utils.weight_norm(layer)
            layer.weight_g.data.mul_(1.3)


def weight_parametrised(model):
    for layer in _convolutions_and_linears(model):
        parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data.mul_(1.3)


def spectral_normed(model):
    for layer in _convolutions_and_linears(model):
        nn.utils.spectral_norm(layer)


def spectral_parametrised(model):
    for layer in _convolutions_and_linears(model):
        parametrizations.spectral_norm(layer)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def norms_parametrised(model):
    for module in list(model.modules()):
        for name in ('weight', 'layer_scale2', 'layer_scale1'):
            parameter = module._parameters.get(name)
            if parameter is not None and parameter.ndim == 1:
                register_parametrization(module, name, Doubled())


class Adapter(nn.Module):
    """A low-rank adapter, as peft puts it around a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        if isinstance(layer, nn.Conv2d):
            self.a = nn.Conv2d(layer.in_channels, 2, layer.kernel_size, layer.stride, layer.padding, bias=False)
            self.b = nn.Conv2d(2, layer.out_channels, 1, bias=False)
        else:
            self.a, self.b = nn.Linear(layer.in_features, 2, bias=False), nn.Linear(2, layer.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + self.b(self.a(x))


def adapted(model):
    for name, module in list(model.named_modules()):
        kinds = (nn.Conv2d, nn.Linear)
        if type(module) is Conv2d or (isinstance(module, kinds) and type(module).__module__.startswith('torch.')):
            parent, _, leaf = name.rpartition('.')
            setattr(model.get_submodule(parent), leaf, Adapter(module))


def scaling_hooks(model):
    for layer in _convolutions_and_linears(model):
        layer.register_forward_hook(lambda module, args, output: 1.1 * output + 0.1)


def hooked_norms(model):
    for module in model.modules():
        if 'Norm' in type(module).__name__:
            module.register_forward_hook(lambda module, args, output: output.tanh())


def tied(model):
    """Use the layers of one block in the next block too, or share a weight between two convolutions."""
    for stage in model.stages:
        blocks = stage.blocks
        if len(blocks) > 1 and hasattr(blocks[0], 'channel_mixer'):
            blocks[1].channel_mixer = blocks[0].channel_mixer
        elif len(blocks) > 1 and hasattr(blocks[0], 'mixer'):
            blocks[1].mixer.fc1 = blocks[0].mixer.fc1
            blocks[1].mlp.fc1.weight = blocks[0].mlp.fc1.weight


def norms_without_parameters(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight = module.bias = None


CHANGES = [
    pruned,
    pruned_in_structure,
    scales_pruned,
    weight_normed,
    weight_parametrised,
    spectral_normed,
    spectral_parametrised,
    norms_parametrised,
    adapted,
    scaling_hooks,
    hooked_norms,
    tied,
    norms_without_parameters,
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize('name', [*CONVOLUTIONAL, 'swin'])
def test_optimized_modified_networks_agree(name, change):
    model, x = make(name), images(16, 24)
    change(model)
    outputs(model.train(), x)  # power iterations of spectral norms
    model.eval()
    expected = outputs(model, x)
    assert all(y.isfinite().all() for y in expected)
    optimized = fcvit_mm.optimize_for_inference(model)
    for _ in range(2):
        assert_close(outputs(optimized, x), expected)
    assert_close(outputs(model, x), expected)


def test_hooks_are_called_in_the_optimized_model():
    model, seen = make('fcvit'), []
    model.stem.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    fcvit_mm.optimize_for_inference(model)(images(32, 32))
    assert len(seen) == 1


# -- transformations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
def test_gradients_per_sample(name):
    model, x = make(name), images(16, 24)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, image):
        return sum(y.square().mean() for y in torch.func.functional_call(model, (parameters, buffers), (image[None],)))

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, image in enumerate(x):
        model.zero_grad()
        sum(y.square().mean() for y in model(image[None])).backward()
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[key][i], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', NETWORKS)
def test_forward_mode_derivatives(name):
    model = make(name).double()
    x, direction = images(16, 24).double(), torch.randn(2, 3, 16, 24, dtype=torch.double)
    _, tangents = torch.func.jvp(lambda x: tuple(model(x)), (x,), (direction,))
    step = 1e-6
    above, below = outputs(model, x + step * direction), outputs(model, x - step * direction)
    for tangent, up, down in zip(tangents, above, below):
        torch.testing.assert_close(tangent, (up - down) / (2 * step), rtol=1e-4, atol=1e-5)


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
def test_adapters_on_every_layer(name):
    model, x = make(name), images(16, 24)
    expected = outputs(model, x)
    state = model.state_dict()
    adapted(model)
    assert differ(outputs(model, x), expected)
    for module in model.modules():
        if isinstance(module, Adapter):
            nn.init.zeros_(module.b.weight)
    assert_close(outputs(model, x), expected)
    make(name).load_state_dict(state)
