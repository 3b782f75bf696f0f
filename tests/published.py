"""Helpers that write a checkpoint as training does, and that publish it."""

from functools import partial

import numpy as np
import torch
from harness import call_tool, load_tool

main = partial(call_tool, load_tool('publish_model.py'))
#: FCViT-tiny with one block per stage, which fits the heads and necks of FCViT-tiny.
ARCH = dict(depths=(1, 1, 1, 1), channels=(32, 64, 160, 320), mlp_ratios=(1, 1, 1, 1))
MICRO = "\nmodel['backbone'] = dict(model.get('backbone', {{}}), arch=dict(_delete_=True, **{arch}))\n"
CLASSES = ('circle', 'cross', 'square', 'star', 'triangle')
STAMP = '20260102_030405'


def write_checkpoint(path, state_dict, classes=CLASSES, **dataset_meta):
    """Write a checkpoint as MMEngine's runner does, with much more than the weights."""
    meta = dict(
        epoch=3,
        iter=12,
        cfg='a = 1',
        seed=np.int64(7),
        experiment_name=f'micro_{STAMP}',
        time=STAMP,
        mmengine_version='0.10.12' + '0' * 40,
        hook_msgs=dict(secret='/home/somebody'),
        dataset_meta=dict(classes=classes, palette=[[255, 0, 0]] * len(classes), **dataset_meta),
    )
    moments = {i: dict(exp_avg=value.clone()) for i, value in enumerate(state_dict.values())}
    torch.save(
        dict(
            state_dict=state_dict,
            meta=meta,
            optimizer=dict(state=moments, param_groups=[]),
            param_schedulers=[dict(last_step=4)],
            message_hub=dict(runtime_info=dict(epoch=3)),
        ),
        path,
    )
    return path


def random_weights(model):
    torch.manual_seed(0)
    return {
        name: torch.rand_like(value) * 0.1 if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def publish(checkpoint, folder, *options):
    """Run the command, and return the written files by suffix."""
    before = set(folder.iterdir())
    main([str(checkpoint), str(folder / 'micro.pth'), *options])
    return {path.suffix: path for path in set(folder.iterdir()) - before}
