_base_ = 'mmpretrain::_base_/default_runtime.py'

# A child's custom_imports replace its parent's, so no other config sets them.
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)

default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='accuracy/top1', rule='greater')
)
