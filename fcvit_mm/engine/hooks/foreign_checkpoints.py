"""A hook that finds the weights in checkpoints of timm, the authors or ``torch.compile``."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoints import weights_of
from ...checkpoints.names import without_wrappers


class FindWeightsHook(Hook):
    """Hook that stores the weights of a checkpoint under the key and names that MMEngine looks for.

    MMEngine itself only reads ``state_dict`` and removes the prefix ``module.``. From a file with the key ``model``, or
    with names of ``torch.compile``, it would load nothing, with a warning.
    """

    priority = 'HIGHEST'  # EMAHook copies state_dict

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        names = checkpoint.get('state_dict')
        if not isinstance(names, dict) or any(without_wrappers(str(name)) != name for name in names):
            checkpoint['state_dict'] = weights_of(checkpoint)


def find_weights(runner: Runner) -> None:
    """Let a runner find the weights in any container, once."""
    if not any(isinstance(hook, FindWeightsHook) for hook in runner.hooks):
        runner.register_hook(FindWeightsHook())
