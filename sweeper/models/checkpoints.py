"""Checkpoints looked over without building a model: local folders or hub ids. Nothing heavy is imported."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.spec.study import ModelSpec

_SAFE = "*.safetensors"
_PICKLED = "pytorch_model*.bin"
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md"]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a checkpoint without building the model.

    ``name`` is the study's, ``checkpoint`` the folder or hub id that stands for it there. ``fingerprint`` hashes
    configuration and weights (SHA-256); ``folder`` is where they lie; ``licence`` comes from the model card, empty
    where there is none; ``is_safe`` says that the weights are safetensors and not pickled.
    """

    name: str
    checkpoint: str
    model_type: str
    folder: Path
    fingerprint: str
    licence: str = ""
    is_safe: bool = True


def inspect(model: ModelSpec) -> ModelInfo:
    """Look a checkpoint over without building it.

    Raises
    ------
    InputError
        When the folder is missing or empty of weights, the configuration cannot be read, only pickled weights are
        there without ``allow_bin``, or the checkpoint wants to run its own code.
    """
    folder = _folder(model)
    config = read_config(model, folder)
    weights = sorted(folder.glob(_SAFE))
    if not weights:
        pickled = sorted(folder.glob(_PICKLED))
        if not pickled:
            raise checkpoint_problem(
                model, "the folder must hold model.safetensors", "no weights", "save the model there first"
            )
        if not model.allow_bin:
            remedy = "convert them to safetensors, or set `allow_bin: true` on the model if you trust their source"
            raise checkpoint_problem(model, "weights must be safetensors", pickled[0].name, remedy)
        weights = pickled
    if "auto_map" in config and not model.trust_remote_code:
        remedy = "set `trust_remote_code: true` on the model if you trust its authors"
        raise checkpoint_problem(model, "the checkpoint must not need its own code", "auto_map in config.json", remedy)
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weights):
        digest.update(_file_hash(path, path.stat().st_mtime_ns, path.stat().st_size))
    return ModelInfo(
        name=model.name,
        checkpoint=model.checkpoint,
        model_type=str(config["model_type"]),
        folder=folder,
        fingerprint=digest.hexdigest(),
        licence=_licence(folder),
        is_safe=weights[0].suffix == ".safetensors",
    )


def _folder(model: ModelSpec) -> Path:
    path = Path(os.path.expanduser(model.checkpoint))  # noqa: PTH111 - of a stranger's home it says nothing
    if os.path.isdir(path):  # noqa: PTH112 - nor of names that are too long
        return path
    if model.checkpoint.startswith((".", "/", "~")) or model.checkpoint.count("/") > 1 or os.path.exists(path):  # noqa: PTH110
        raise checkpoint_problem(model, "must be a folder or a hub id", "no such folder", "check the path")
    from huggingface_hub import snapshot_download

    patterns = _HUB_FILES + (["*.bin"] if model.allow_bin else [])
    try:
        return Path(snapshot_download(model.checkpoint, revision=model.revision, allow_patterns=patterns))
    except Exception as error:  # network, authentication, a wrong name: the hub client has a class for each
        reason = " ".join(str(error).split())[:160]
        remedy = "check the name and the network, or give a local folder"
        raise checkpoint_problem(model, "the hub must have it", f"{type(error).__name__}: {reason}", remedy) from None


def read_config(model: ModelSpec, folder: Path) -> dict[str, Any]:
    """Read a checkpoint's config.json.

    Raises
    ------
    InputError
        When it is missing, damaged or names no ``model_type``.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise checkpoint_problem(
            model, "the folder must hold config.json", "none", "save the model there first"
        ) from None
    except (ValueError, RecursionError) as error:
        raise checkpoint_problem(model, "config.json must be JSON", str(error), "restore it") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise checkpoint_problem(model, "config.json must name a model_type", "none", "save it with save_pretrained")
    return config


def _licence(folder: Path) -> str:
    try:
        from huggingface_hub import ModelCard

        return str(ModelCard.load(folder / "README.md").data.to_dict().get("license", ""))
    except Exception:  # a card is optional, and its front matter is anyone's text
        return ""


@lru_cache(maxsize=1024)
def _file_hash(path: Path, mtime_ns: int, size: int) -> bytes:  # noqa: ARG001 - time and size key the cache
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def checkpoint_problem(model: ModelSpec, rule: str, value: str, remedy: str) -> InputError:
    """Return the error of a model's checkpoint, ready to be raised."""
    return InputError(Problem(f"models.{model.name}.checkpoint {model.checkpoint}", rule, value, remedy))
