"""Old public names that still work, with a ``DeprecationWarning`` that names the new one.

The policy (CONTRIBUTING.md): a public name that changes keeps its old one for one minor version. The names listed here
were renamed in 0.1 and are removed in 0.2. Old networks, hooks and the file backend are defined next to the new ones by
:func:`deprecated_class`; modules that moved are found under their old names by :class:`MovedModules`, and functions
that were renamed with them by :data:`RENAMED`.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any, Callable, Dict, Optional, Sequence

#: Version that removes the old names.
REMOVED_IN = '0.2'
#: Modules that moved, old name to new.
MOVED_MODULES = {
    'fcvit_mm.requirements': 'fcvit_mm.dependencies',
    'fcvit_mm.analysis.probe': 'fcvit_mm.analysis.recording',
    'fcvit_mm.checkpoints.key_tables': 'fcvit_mm.checkpoints.names',
    'fcvit_mm.checkpoints.publish': 'fcvit_mm.publishing.weights',
    'fcvit_mm.engine.annotations': 'fcvit_mm.preflight.annotations',
    'fcvit_mm.engine.app': 'fcvit_mm.app.page',
    'fcvit_mm.engine.checkpoint': 'fcvit_mm.engine.hooks.checkpoint',
    'fcvit_mm.engine.complexity': 'fcvit_mm.apis.count',
    'fcvit_mm.engine.drawing': 'fcvit_mm.apis.draw',
    'fcvit_mm.engine.errors': 'fcvit_mm.errors',
    'fcvit_mm.engine.export': 'fcvit_mm.export.exporter',
    'fcvit_mm.engine.exportable': 'fcvit_mm.export.parts',
    'fcvit_mm.engine.graphs': 'fcvit_mm.export.formats',
    'fcvit_mm.engine.layer_decay': 'fcvit_mm.engine.optim.layer_decay',
    'fcvit_mm.engine.model_card': 'fcvit_mm.publishing.model_card',
    'fcvit_mm.engine.network': 'fcvit_mm.apis.load',
    'fcvit_mm.engine.numbers': 'fcvit_mm.engine.hooks.non_finite',
    'fcvit_mm.engine.pictures': 'fcvit_mm.engine.hooks.corrupt_samples',
    'fcvit_mm.engine.preflight': 'fcvit_mm.preflight.checks',
    'fcvit_mm.engine.quantization': 'fcvit_mm.export.quantization',
    'fcvit_mm.engine.resume': 'fcvit_mm.engine.hooks.resume',
    'fcvit_mm.engine.storage': 'fcvit_mm.files',
    'fcvit_mm.engine.trial': 'fcvit_mm.preflight.trial',
    'fcvit_mm.models.scaled': 'fcvit_mm.models',
    'fcvit_mm.models.timm_hosts': 'fcvit_mm.models.timm_blocks',
    'fcvit_mm.ops.triton.depthwise': 'fcvit_mm.ops.triton.depthwise_conv',
    'fcvit_mm.ops.triton.depthwise_kernels': 'fcvit_mm.ops.triton.depthwise_conv_kernels',
}
#: Renamed functions and classes: old module -> old name -> new name with its module.
RENAMED = {
    'fcvit_mm.analysis.probe': {
        name: f'fcvit_mm.analysis.attention.{name}'
        for name in ('Attention', 'attention_layers', 'collect_attention', 'collect_similarity', 'similarity_layers')
    },
    'fcvit_mm.analysis.similarity': {
        name: f'fcvit_mm.analysis.query_maps.{name}' for name in ('attention_maps', 'draw_attention', 'draw_beside')
    },
    'fcvit_mm.checkpoints.key_tables': {'is_like': 'fcvit_mm.models.published_names.is_like'},
    'fcvit_mm.engine': {
        'BrokenPictureHook': 'fcvit_mm.engine.hooks.BrokenPictureHook',
        'WholeCheckpointHook': 'fcvit_mm.engine.hooks.WholeCheckpointHook',
        'WholeFileBackend': 'fcvit_mm.files.AtomicFileBackend',
    },
    'fcvit_mm.engine.app': {
        **{
            name: f'fcvit_mm.app.models.{name}'
            for name in ('LOADED', 'MAX_SIDE', 'Loaded', 'Model', 'Prediction', 'find_models', 'shrink')
        },
        **{name: f'fcvit_mm.app.server.{name}' for name in ('CSS', 'DEFAULT_PORT', 'OwnHostOnly', 'POLICY')},
        **{name: f'fcvit_mm.app.server.{name}' for name in ('build_server', 'open_port')},
        'FORMATS': 'fcvit_mm.images.reading.FORMATS',
        'UploadError': 'fcvit_mm.images.ImageError',
        'View': 'fcvit_mm.app.models.Similarity',
        'read_upload': 'fcvit_mm.images.read_untrusted_image',
    },
    'fcvit_mm.engine.checkpoint': {'WholeCheckpointHook': 'fcvit_mm.engine.hooks.WholeCheckpointHook'},
    'fcvit_mm.engine.complexity': {'Part': 'fcvit_mm.apis.count.PartComplexity'},
    'fcvit_mm.engine.config': {
        **{name: f'fcvit_mm.options.{name}' for name in ('add_config_options', 'add_import_option')},
        **{
            name: f'fcvit_mm.engine.command_options.{name}'
            for name in ('dump_predictions', 'enable_amp', 'enable_auto_scale_lr', 'enable_tta', 'enable_visualization')
        },
        'adapt_to_machine': 'fcvit_mm.engine.machine.adapt_to_machine',
    },
    'fcvit_mm.engine.distributed': {'LAUNCHERS': 'fcvit_mm.options.LAUNCHERS'},
    'fcvit_mm.engine.drawing': {
        'InputError': 'fcvit_mm.images.ImageError',
        'VIDEO_SUFFIXES': 'fcvit_mm.images.VIDEO_SUFFIXES',
        'find_inputs': 'fcvit_mm.images.find_inputs',
        'build_artist': 'fcvit_mm.apis.draw.build_drawer',
        'draw_pictures': 'fcvit_mm.apis.draw.draw_images',
    },
    'fcvit_mm.engine.errors': {'run_tool': 'fcvit_mm.errors.run_command'},
    'fcvit_mm.engine.exportable': {
        'take_part': 'fcvit_mm.export.selection.take_part',
        **{name: f'fcvit_mm.export.any_size.{name}' for name in ('AdaptiveAvgPool2d', 'SameSize')},
        'free_of_sizes_': 'fcvit_mm.export.any_size.replace_fixed_sizes_',
    },
    'fcvit_mm.engine.graphs': {
        **{name: f'fcvit_mm.export.errors.{name}' for name in ('ExportError', 'naming_operators', 'operator_of')},
        **{name: f'fcvit_mm.export.runtimes.{name}' for name in ('as_tuple', 'load_exported')},
        **{
            name: f'fcvit_mm.export.comparison.{name}'
            for name in ('TOLERANCE', 'Difference', 'compare', 'time_in_turn')
        },
    },
    'fcvit_mm.engine.network': {
        'read_picture': 'fcvit_mm.images.read_image',
        'fit_picture': 'fcvit_mm.apis.preprocessing.fit_image',
        'pad_picture': 'fcvit_mm.apis.preprocessing.pad_image',
    },
    'fcvit_mm.engine.pictures': {
        'BrokenPictureHook': 'fcvit_mm.engine.hooks.BrokenPictureHook',
        'ENDINGS': 'fcvit_mm.images.checking.ENDINGS',
        'empty_picture': 'fcvit_mm.engine.hooks.corrupt_samples.empty_image',
    },
    'fcvit_mm.engine.resume': {
        **{name: f'fcvit_mm.engine.resume_point.{name}' for name in ('find_resume_point', 'is_complete')},
        'mix': 'fcvit_mm.engine.hooks.resumable_sampler.hash_seed',
        'start_anew': 'fcvit_mm.engine.hooks.resume.restart_data_iterator',
    },
    'fcvit_mm.engine.preflight': {'disk_problems': 'fcvit_mm.preflight.work_dir.disk_problems'},
    'fcvit_mm.engine.quantization': {
        'calibration_pictures': 'fcvit_mm.export.quantization.calibration_images',
        'labelled_pictures': 'fcvit_mm.export.quantization.labelled_images',
    },
    'fcvit_mm.engine.run': {
        'add_hooks': 'fcvit_mm.engine.hooks.defaults.add_training_hooks',
        'go_on_training': 'fcvit_mm.engine.run.run_training_loop',
    },
    'fcvit_mm.engine.storage': {
        'WholeFileBackend': 'fcvit_mm.files.AtomicFileBackend',
        'write_whole': 'fcvit_mm.files.write_atomic',
    },
    'fcvit_mm.models.layers': {
        'fold_batch_norm_': 'fcvit_mm.models.fusion.fuse_batch_norm_',
        'fold_input_': 'fcvit_mm.models.fusion.fuse_input_',
        'fold_output_': 'fcvit_mm.models.fusion.fuse_output_',
        'is_plain': 'fcvit_mm.models.modified.is_unmodified',
        # Networks of other packages may import these names from here.
        **{name: f'fcvit_mm.models.caches.{name}' for name in ('CachedWeight', 'ModuleCache')},
        **{
            name: f'fcvit_mm.models.fusion.{name}'
            for name in ('can_fuse', 'fuse_batch_norm_', 'fuse_batch_norm_before_', 'fuse_input_', 'fuse_output_')
        },
        **{name: f'fcvit_mm.models.modified.{name}' for name in ('has_global_hooks', 'is_unmodified')},
        **{
            name: f'fcvit_mm.models.padding.{name}'
            for name in ('batch_to_space', 'pad_to_multiple', 'space_to_batch', 'up_to_multiple')
        },
        **{name: f'fcvit_mm.models.stages.{name}' for name in ('PatchEmbed', 'Stage', 'drop_path_rates')},
    },
    'fcvit_mm.models.oversmoothing': {
        'REMEDIES': 'fcvit_mm.models.oversmoothing.METHODS',
        'ScaledHeadMixing': 'fcvit_mm.models.oversmoothing.AttnScaleHeadMixing',
        'check_remedies': 'fcvit_mm.models.oversmoothing.check_methods',
    },
    'fcvit_mm.models.scaled': {
        **{
            name: f'fcvit_mm.models.transformer.{name}'
            for name in ('OUT_TYPES', 'TokenEmbed', 'Transformer', 'check_transformer', 'grid_of')
        },
        'ClassAttentionStage': 'fcvit_mm.models.cait.ClassAttentionStage',
        'PlainTransformer': 'fcvit_mm.models.transformer.TokenTransformer',
        'WindowStem': 'fcvit_mm.models.swin.WindowStem',
        'init_transformer_weights_': 'fcvit_mm.models.transformer.init_transformer_weights_',
    },
    'fcvit_mm.models.timm_hosts': {
        'ScaledAttention': 'fcvit_mm.models.timm_blocks.AttnScaleSelfAttention',
        'ScaledWindowAttention': 'fcvit_mm.models.timm_blocks.AttnScaleWindowAttention',
    },
    'fcvit_mm.ops.conditions': {'is_nhwc': 'fcvit_mm.ops.conditions.is_channels_last'},
    'fcvit_mm.ops.dispatch': {name: f'fcvit_mm.ops.tracing.{name}' for name in ('is_exporting', 'records_any_size')},
    'fcvit_mm.ops.triton.global_context': {
        'global_context_add': 'fcvit_mm.ops.triton.global_context.add_global_context',
        'global_context_add_grad': 'fcvit_mm.ops.triton.global_context.add_global_context_grad',
    },
}


def warn_deprecated(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that ``old`` is a deprecated name of ``new``."""
    warnings.warn(
        f'{old} is deprecated and will be removed in fcvit_mm {REMOVED_IN}: use {new}',
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def deprecated_class(old: str, target: type, module: str, arguments: Optional[Dict[str, str]] = None) -> type:
    """Make a class called ``old`` whose calls build ``target``.

    Args:
        old (str): The deprecated name.
        target (type): Class under its current name.
        module (str): ``__name__`` of the module that the class is assigned in.
        arguments (dict[str, str], optional): Renamed arguments: old name -> name in ``target``.

    Returns:
        type: A subclass, whose calls warn and return an instance of ``target`` itself.
    """

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        warn_deprecated(old, target.__name__)
        for before, after in (arguments or {}).items():
            if before in kwargs:
                warn_deprecated(f'{before}= of {old}', f'{after}=')
                kwargs[after] = kwargs.pop(before)
        return target(*args, **kwargs)

    return type(
        old,
        (target,),
        dict(
            __new__=new, __module__=module, __qualname__=old, __doc__=f'Deprecated name of :class:`{target.__name__}`.'
        ),
    )


def renamed_in(module: str, otherwise: Optional[str] = None) -> Callable[[str], Any]:
    """Make a module's ``__getattr__`` that finds the names of :data:`RENAMED` and warns.

    Args:
        module (str): A key of :data:`RENAMED`.
        otherwise (str, optional): Module in which all other names are looked up.
    """
    names = RENAMED.get(module, {})

    def __getattr__(name: str) -> Any:
        if name in names:
            home, _, new = names[name].rpartition('.')
            if new != name:
                warn_deprecated(f'{module}.{name}', names[name])
            return getattr(importlib.import_module(home), new)
        if otherwise is None:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        return getattr(importlib.import_module(otherwise), name)

    return __getattr__


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook for the old names of :data:`MOVED_MODULES`: modules that forward every access to the new one."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname not in MOVED_MODULES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED_MODULES[module.__name__]
        # The warning names the importing file, because Python skips frames of the import system.
        warn_deprecated(f'the module {module.__name__}', new)
        module.__dict__['__getattr__'] = renamed_in(module.__name__, new)
        module.__doc__ = f'Deprecated name of :mod:`{new}`.'


def install() -> None:
    """Install the import hook for old module names, unless it is installed already."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
