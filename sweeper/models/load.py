"""Loading pretrained checkpoints: local folders or hub ids, safetensors only, through transformers' Auto classes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # transformers 5.17 hides its own alias
from transformers.utils import logging as transformers_logging

from sweeper.core.errors import InputError
from sweeper.core.head import HeadSpec
from sweeper.models import detection
from sweeper.models.blocks import BlockLayout, find_blocks
from sweeper.models.checkpoints import ModelInfo, checkpoint_problem, inspect, read_config
from sweeper.models.dropout import apply_dropouts, read_dropouts
from sweeper.spec.study import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A checkpoint in memory with a head for the task: pristine, copied for every trial.

    Parameters
    ----------
    module:
        Never trained itself.
    layout:
        Its parameters from embeddings to head.
    head:
        Dotted name of the module that maps features to outputs.
    fresh:
        Modules that the checkpoint did not hold, initialised from each trial's seed.
    notes:
        What a user should know, such as a replaced head.
    is_detector:
        Whether it finds boxes; see `sweeper.models.detection`.
    """

    info: ModelInfo
    preprocessor: Any
    module: Any
    layout: BlockLayout
    head: str
    fresh: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    is_detector: bool = False

    def instantiate(self, seed: int, dropouts: Mapping[str, float], num_reinitialised_blocks: int = 0) -> Any:
        """Return a copy to train: weights from the pristine one, the new head drawn from ``seed``.

        So are as many blocks from the top as ``num_reinitialised_blocks`` says (Zhang et al. 2021, arXiv 2006.05987).

        The global random state is left as it was.
        """
        module = copy.deepcopy(self.module)
        again = self.layout.blocks[self.layout.num_blocks - num_reinitialised_blocks :]
        parts = [name for block in again for name, _ in module.get_submodule(block).named_modules(prefix=block)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in (*self.fresh, *parts):
                _initialise(module, module.get_submodule(name))
            if self.is_detector:
                detection.draw_with_owners(module, self.fresh)
        apply_dropouts(module, self.head, dropouts)
        return module

    def dropouts(self, module: Any) -> dict[str, list[float]]:
        """Read the live dropout rates of a module made by `instantiate`."""
        return read_dropouts(module, self.head)

    def count_reinitialised(self, module: Any) -> int:
        """Count the blocks of a module, fresh from `instantiate`, whose weights are no longer the checkpoint's."""
        pristine = dict(self.module.named_parameters())
        fresh = tuple(f"{name}." for name in self.fresh)
        changed = {
            block
            for name, parameter in module.named_parameters()
            for block in self.layout.blocks
            if name.startswith(f"{block}.")
            and not name.startswith(fresh)
            and not torch.equal(parameter, pristine[name])
        }
        return len(changed)

    def save(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write weights, configuration and preprocessor so that ``from_pretrained`` loads them (safetensors)."""
        with _quiet():
            self.module.save_pretrained(folder, state_dict=dict(state))
            self.preprocessor.save_pretrained(folder)

    def load_weights(self, folder: Path) -> Any:
        """Return a module with the weights that `save` wrote, in evaluation mode."""
        with _quiet():
            module = type(self.module).from_pretrained(folder, use_safetensors=True).eval()
        if self.is_detector:
            detection.adapt(module)
        return module


def load(model: ModelSpec, head: HeadSpec) -> Pretrained:
    """Load a checkpoint and its preprocessor, with a head for the task.

    A head whose labels differ is replaced, with a note.

    Raises
    ------
    InputError
        When the checkpoint is not what `inspect` or the Auto class asks for, or its file is damaged.
    """
    info = inspect(model)
    labels = dict(enumerate(head.labels))
    wanted: dict[str, Any] = {"problem_type": head.problem_type} if head.problem_type else {}
    if labels:
        wanted |= {
            "num_labels": len(labels),
            "id2label": labels,
            "label2id": {label: index for index, label in labels.items()},
        }
    try:
        with _quiet():
            module, report = getattr(transformers, head.auto_class).from_pretrained(
                info.folder,
                **wanted,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                use_safetensors=info.is_safe,
                weights_only=True,
                trust_remote_code=model.trust_remote_code,
                dtype=torch.float32,
            )
            preprocessor = _preprocessor(model, info, module)
            _keep_to_positions(preprocessor, module)
    except Exception as error:  # transformers raises whatever the damage leads to
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:160]
        remedy = "check that the checkpoint is whole and fits the task"
        raise checkpoint_problem(
            model, f"must load with {head.auto_class}", f"{type(error).__name__}: {reason}", remedy
        ) from None
    module.config.update(dict(head.config))
    if head.image_size is not None:
        _set_size(preprocessor, head.image_size)
    fresh, notes = _fresh(model, info, module, head, report)
    is_detector = head.auto_class == detection.AUTO_CLASS
    layout = find_blocks(module, model.blocks, detection.head_parameters(module) if is_detector else None)
    if is_detector:
        detection.adapt(module)
    return Pretrained(
        info=info,
        preprocessor=preprocessor,
        module=module.eval(),
        layout=layout,
        head=detection.head_name(module) if is_detector else _head_name(module),
        fresh=fresh,
        notes=notes,
        is_detector=is_detector,
    )


def _fresh(
    model: ModelSpec, info: ModelInfo, module: Any, head: HeadSpec, report: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that each trial draws anew, and what to tell the user about it."""
    missing = {_key(item) for item in report["missing_keys"]}
    mismatched = {_key(item) for item in report["mismatched_keys"]}
    own: dict[str, str] = read_config(model, info.folder).get("id2label") or {}
    labels = tuple(own[key] for key in sorted(own, key=int))
    of_head = {name for name, _ in module.named_parameters() if not name.startswith(f"{module.base_model_prefix}.")}
    if head.auto_class == detection.AUTO_CLASS:  # what finds boxes knows nothing of classes, and stays
        of_head = detection.class_layers(module)
    new = missing | mismatched
    notes: tuple[str, ...] = ()
    if (
        head.labels and labels != head.labels and of_head - missing
    ):  # all of the old head goes, also layers of it that would fit
        new |= of_head
        notes = (f"{model.name}: the checkpoint's head has other labels; it was replaced",)
    return fresh_modules(new), notes


def _keep_to_positions(preprocessor: Any, module: Any) -> None:
    """Let a tokenizer, whatever it was saved with, cut inputs to the positions that its model has."""
    most = getattr(module.config, "max_position_embeddings", None)
    for name, part in module.named_modules():  # RoBERTa's positions begin behind the one for padding
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            most = part.num_embeddings - part.padding_idx - 1
    if isinstance(most, int) and most > 0 and hasattr(preprocessor, "model_max_length"):
        preprocessor.model_max_length = min(preprocessor.model_max_length, most)


def _set_size(processor: Any, side: int) -> None:
    """Let an image processor, also the one that is saved with the weights, bring images to the study's size."""
    if _pads(processor):
        processor.size = {"shortest_edge": side, "longest_edge": side}
        processor.pad_size = {"height": side, "width": side}
    else:
        processor.size = {"height": side, "width": side}
        if hasattr(processor, "do_center_crop"):
            processor.do_center_crop = False


def _pads(processor: Any) -> bool:
    """Whether a processor keeps an image's shape and pads it, as DETR's does, rather than stretching it."""
    stretches = processor.size.get("height") and processor.size.get("width")
    return bool(getattr(processor, "do_pad", False)) and not stretches


def _preprocessor(model: ModelSpec, info: ModelInfo, module: Any) -> Any:
    takes_images = module.main_input_name == "pixel_values"
    # Pillow also where torchvision is installed: the same image gives the same numbers on every machine.
    auto, options = (AutoImageProcessor, {"backend": "pil"}) if takes_images else (transformers.AutoTokenizer, {})
    try:
        return auto.from_pretrained(info.folder, trust_remote_code=model.trust_remote_code, **options)
    except Exception as error:  # a missing or broken preprocessor raises anything
        what = "an image processor" if takes_images else "a tokenizer"
        reason = " ".join(str(error).split())[:120]
        raise checkpoint_problem(
            model, f"the folder must hold {what}", reason, "save it there with save_pretrained"
        ) from None


def fresh_modules(missing: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that own ``missing`` parameters, in the order in which they are drawn."""
    return tuple(sorted({name.rpartition(".")[0] for name in missing}))


def draw_anew(model: Any, names: Iterable[str], seed: int) -> None:
    """Draw the weights of a model's modules ``names`` from ``seed``; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            _initialise(model, model.get_submodule(name))


def _initialise(model: Any, module: nn.Module) -> None:
    """Draw a new module's weights the way its family does; the flag says that nothing has been loaded into it."""
    parameters = list(module.parameters(recurse=False))
    for parameter in parameters:
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    module._is_hf_initialized = False  # type: ignore[assignment]
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(torch.nan)  # by which is seen what the family leaves alone
        model._init_weights(module)
        untouched = [bool(parameter.isnan().any()) for parameter in parameters]
        for parameter, value in zip(parameters, before, strict=True):
            if parameter.isnan().any():
                parameter.copy_(value)
        reset: Any = getattr(module, "reset_parameters", None)
        if all(untouched) and reset is not None:
            reset()  # a family that leaves this kind of module to torch's own default


def _head_name(module: Any) -> str:
    """Return the last direct child outside the body that owns parameters: the classifier."""
    names: list[str] = [name for name, _ in module.named_children() if name != module.base_model_prefix]
    owners = [name for name in names if any(True for _ in module.get_submodule(name).parameters())]
    assert owners, f"{type(module).__name__} has no head"
    return owners[-1]


def _key(item: Any) -> str:
    return str(item) if isinstance(item, str) else str(item[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' reports and progress bars inside the block."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
