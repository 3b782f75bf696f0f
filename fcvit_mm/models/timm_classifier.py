"""Classifiers of a backbone and a head, with the methods that timm's models have."""

import warnings
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor

from .backbone import Backbone, output_layout
from .transformer import TokenTransformer


class TracedModel(nn.Module):
    """A traced model, which can be scripted."""

    def __init__(self, recorded: nn.Module) -> None:
        super().__init__()
        self.recorded = recorded

    def forward(self, x: Tensor) -> Tensor:
        return self.recorded(x)


class Classifier(nn.Module):
    """A backbone with stages and timm's classifier head, with the methods that timm's models have.

    Args:
        backbone (Backbone): A backbone with one output, that of its last stage.
        num_classes (int): 0 for no linear layer.
        in_chans (int): Channels of the images.
        global_pool (str): ``'avg'``, another of timm's, or empty for none.
        drop_rate (float): Dropout before the linear layer.

    Shape:
        ``(B, in_chans, H, W)`` to ``(B, num_classes)``.
    """

    #: Default ``out_indices`` of ``features_only=True``: indices, or the number of the last outputs.
    feature_indices: Union[int, Tuple[int, ...]] = (0, 1, 2, 3)
    #: Default ``global_pool``.
    default_pool = 'avg'
    #: timm's head, or :class:`TokenHead`: ``fc`` is its linear layer.
    head: Any

    def __init__(self, backbone: Backbone, num_classes: int, in_chans: int, global_pool: str, drop_rate: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = backbone.out_channels[-1]
        self.feature_info = self.describe_features()
        self.head = self.build_head(num_classes, global_pool)
        if num_classes > 0:
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)

    def describe_features(self) -> List[Dict[str, Any]]:
        """Return channels, stride and module of each intermediate, as timm names them."""
        return [
            dict(num_chs=channels, reduction=stride, module=f'backbone.stages.{i}')
            for i, (channels, stride) in enumerate(zip(self.backbone.stage_channels, self.backbone.stage_strides))
        ]

    def build_head(self, num_classes: int, global_pool: str) -> nn.Module:
        """Build pooling, dropout and the linear layer ``fc``."""
        return ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=self.drop_rate)

    def is_last(self, stage: int) -> bool:
        """Return whether this stage has the output norm."""
        return stage == len(self.feature_info) - 1

    def last_norm(self, x: Tensor) -> Tensor:
        """Apply the output norm: ``(B, C, H, W)`` to the same."""
        return getattr(self.backbone, f'norm{len(self.feature_info) - 1}')(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what ``torch.jit.script`` compiles: the model as ``torch.jit.trace`` records it, for any image size.

        Raises:
            RuntimeError: The model is in training mode; the recorded graph is for evaluation only.
        """
        if self.training:
            raise RuntimeError(f'{type(self).__name__} can only be scripted for inference: call eval() first')
        like = next(self.parameters())
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            return TracedModel(torch.jit.trace(self, like.new_zeros(2, self.in_chans, 64, 64)))

    @torch.jit.ignore
    def no_weight_decay(self) -> Set[str]:
        """Return names of parameters of several dimensions without weight decay; timm excludes one-dimensional ones."""
        learned = ('pos_embed', 'cls_token', 'relative_position_bias_table')
        return {name for name, _ in self.named_parameters() if name.endswith(learned)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Return patterns of parameter groups: by stage if ``coarse``, else by block, for layer-wise decay."""
        return dict(
            stem=r'^backbone\.stem',
            blocks=r'^backbone\.stages\.(\d+)'
            if coarse
            else [
                (r'^backbone\.stages\.(\d+)\.(?:downsample|cls_token)', (0,)),
                (r'^backbone\.stages\.(\d+)\.blocks\.(\d+)', None),
                (r'^backbone\.norm', (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, or store their activations."""
        stage: Any
        for stage in self.backbone.stages:
            stage.with_cp = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the linear layer (0: by none) and, if given, the pooling."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features
        like = next(self.backbone.parameters())
        self.head.to(like.device, self.backbone.output_dtype or like.dtype).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output after its norm, ``(B, C, h, w)``, of images ``(B, in_chans, H, W)``."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the output of :meth:`forward_features`; only pool if ``pre_logits``."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)  # which may be nn.Identity

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Return outputs of the stages (of the blocks, for transformers without stages) and the final features.

        Args:
            x (Tensor): ``(B, in_chans, H, W)``.
            indices (int | list[int], optional): Indices of the outputs, or the number of the last ones; all if
                ``None``.
            norm (bool): Apply the norm: to the last stage's output alone, or to every block's.
            stop_early (bool): Compute no more than ``indices`` needs.
            output_fmt (str): ``'NCHW'``, the only one supported.
            intermediates_only (bool): Return no final features.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: The intermediates, or the final features and them.

        Raises:
            ValueError: Another ``output_fmt``.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt is {output_fmt!r}, expected NCHW')
        taken, last = self.run(x, indices, stop_early)
        layout = output_layout(x)
        maps = [self.to_map(output, i, norm).contiguous(memory_format=layout) for i, output in taken]
        intermediates = [self.backbone.in_output_dtype(each) for each in maps]
        return intermediates if intermediates_only else (self.to_features(*last, layout), intermediates)

    def run(
        self, x: Tensor, indices: Optional[Union[int, List[int]]], stop_early: bool
    ) -> Tuple[List[Tuple[int, Any]], Tuple[int, Any]]:
        """Return the selected items of :meth:`outputs`, and the last one computed, each with its index."""
        take, last_needed = feature_take_indices(self.num_intermediates(), indices)
        taken = []
        for i, output in enumerate(self.outputs(x)):
            if i in take:
                taken.append((i, output))
            if stop_early and i == last_needed:
                break
        return taken, (i, output)

    def num_intermediates(self) -> int:
        """Return the number of intermediates."""
        return len(self.backbone.stages)

    def outputs(self, x: Tensor) -> Iterator[Any]:
        """Yield one intermediate after another, up to the final features."""
        return self.backbone.forward_stages(x)

    def to_map(self, output: Any, i: int, norm: bool) -> Tensor:
        """Return the ``i``-th of :meth:`outputs` as a map ``(B, C, h, w)``."""
        return self.last_norm(output) if norm and self.is_last(i) else output

    def to_features(self, i: int, output: Any, layout: torch.memory_format) -> Tensor:
        """Return the ``i``-th of :meth:`outputs`, the last one computed, as :meth:`forward_features` would."""
        return self.backbone.in_output_dtype(self.to_map(output, i, norm=True).contiguous(memory_format=layout))

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Remove the stages after the last of ``indices``, and the modules that need them.

        Returns:
            list[int]: The indices, counted from 0.
        """
        take, last = feature_take_indices(len(self.backbone.stages), indices)
        if prune_norm or not self.is_last(last):
            delattr(self.backbone, f'norm{self.backbone.out_indices[-1]}')
            self.backbone.add_module(f'norm{last}', nn.Identity())
        self.backbone.stages, self.backbone.out_indices = self.backbone.stages[: last + 1], (last,)
        self.num_features = self.feature_info[last]['num_chs']
        if prune_head or not self.is_last(last):
            self.reset_classifier(0, '')
        return take


class TokenHead(nn.Module):
    """Pooling of tokens, dropout, linear layer.

    Args:
        channels (int): ``C``.
        num_classes (int): 0 for no linear layer.
        global_pool (str): ``'token'`` takes the class token, ``'avg'`` the mean of the patches, ``''`` no pooling.
        drop_rate (float): Dropout before the linear layer.

    Shape:
        ``(B, 1 + N, C)``, the class token first, to ``(B, num_classes)``.

    Raises:
        ValueError: Another ``global_pool``.
    """

    def __init__(self, channels: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        super().__init__()
        self.num_features = channels
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the linear layer (0: by none) and, if given, the pooling."""
        if global_pool not in (None, 'token', 'avg', ''):
            raise ValueError(f"global_pool is {global_pool!r}, expected 'token', 'avg' or '' (none)")
        if global_pool is not None:
            self.global_pool = global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x[:, 0] if self.global_pool == 'token' else x[:, 1:].mean(1)
        x = self.drop(x)
        return x if pre_logits else self.fc(x)

    def extra_repr(self) -> str:
        return f'global_pool={self.global_pool!r}'


class TokenClassifier(Classifier):
    """A ViT or CaiT and its head, as timm's own: features are tokens, intermediates the patches of each block.

    ``features_only=True`` returns maps of one stride, by default of the last three blocks. For a pyramid take the
    backbone itself, ``fcvit_mm.ViT(out_type='pyramid')``.
    """

    backbone: TokenTransformer

    feature_indices = 3
    default_pool = 'token'

    def describe_features(self) -> List[Dict[str, Any]]:
        (channels,), (stride,) = self.backbone.stage_channels, self.backbone.stage_strides
        return [
            dict(num_chs=channels, reduction=stride, module=f'backbone.stages.0.blocks.{i}')
            for i in range(self.num_intermediates())
        ]

    def build_head(self, num_classes: int, global_pool: str) -> nn.Module:
        return TokenHead(self.num_features, num_classes, global_pool, self.drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens after the norm, ``(B, 1 + N, C)``, the class token first, of ``(B, in_chans, H, W)``."""
        return self.final_tokens(self.backbone.forward_tokens(x)[0])

    def final_tokens(self, x: Tensor) -> Tensor:
        """Return the blocks' output after the norm; only patches if a CaiT's class attention is pruned."""
        patches = self.backbone.patches(x)
        if self.backbone.stem.cls_token is not None or len(self.backbone.stages) > 1:
            patches = torch.cat((self.backbone.class_token(x)[:, None], patches), 1)
        return self.backbone.in_output_dtype(self.backbone.norm(patches))

    def num_intermediates(self) -> int:
        stage: Any = self.backbone.stages[0]
        return len(stage.blocks)

    def outputs(self, x: Tensor) -> Iterator[Any]:
        return self.backbone.forward_blocks(x)

    def to_map(self, output: Any, i: int, norm: bool) -> Tensor:
        tokens, grid = output
        patches = self.backbone.patches(tokens)
        return (self.backbone.norm(patches) if norm else patches).transpose(1, 2).unflatten(2, grid)

    def to_features(self, i: int, output: Any, layout: torch.memory_format) -> Tensor:
        return self.final_tokens(output[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> Any:
        """Return outputs of the blocks and the final features; as in :class:`Classifier`, and two arguments more.

        Args:
            output_fmt (str): ``'NCHW'``, maps ``(B, C, h, w)`` of the patches, or ``'NLC'``, the patches
                ``(B, N, C)``.
            return_prefix_tokens (bool): Return pairs of these and the class token ``(B, 1, C)``, if there is one (a
                CaiT's blocks have none).
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f'output_fmt is {output_fmt!r}, expected NCHW or NLC')
        if output_fmt == 'NCHW' and not return_prefix_tokens:
            return super().forward_intermediates(x, indices, norm, stop_early, output_fmt, intermediates_only)
        taken, last = self.run(x, indices, stop_early)
        layout, extra = output_layout(x), self.backbone.stem.num_extra
        intermediates: List[Any] = []
        for _, (tokens, grid) in taken:
            tokens = self.backbone.in_output_dtype(self.backbone.norm(tokens) if norm else tokens)
            patches = tokens[:, extra:]
            if output_fmt == 'NCHW':
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous(memory_format=layout)
            intermediates.append((patches, tokens[:, :extra]) if extra and return_prefix_tokens else patches)
        return intermediates if intermediates_only else (self.to_features(*last, layout), intermediates)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: Union[int, List[int]] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> List[Any]:
        """Return outputs of the blocks, as timm's ViT and DINO do: see :meth:`forward_intermediates`.

        Args:
            n (int | list[int]): The number of the last blocks, or their indices.
            reshape (bool): Return maps ``(B, C, h, w)`` instead of patches ``(B, N, C)``.
        """
        output_fmt = 'NCHW' if reshape else 'NLC'
        return self.forward_intermediates(x, n, norm, False, output_fmt, True, return_prefix_tokens)

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Remove the blocks after the last of ``indices``; with the head, CaiT's class-attention blocks.

        Returns:
            list[int]: The indices, counted from 0.
        """
        take, last = feature_take_indices(self.num_intermediates(), indices)
        stage: Any = self.backbone.stages[0]
        stage.blocks = stage.blocks[: last + 1]
        if prune_norm:
            self.backbone.add_module('norm', nn.Identity())
        if prune_head:
            self.backbone.stages = self.backbone.stages[:1]
            self.reset_classifier(0, '')
        return take
