from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='otherlab', locations=['otherlab.models'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='otherlab', locations=['otherlab.models'])
