"""What a model still knows of something else, before and after fine-tuning: two probes of forgetting.

``probe``: a logistic regression on the frozen body's features of another labelled set, scored on its other half.
``pretraining``: how well the model still does what it was pretrained for on a given text, by its own head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from numpy.typing import NDArray

from sweeper.core.errors import InfeasibleError
from sweeper.data.prepare import PreparedData
from sweeper.data.splits import subset
from sweeper.models.load import Pretrained
from sweeper.spec.study import StudySpec
from sweeper.tasks.base import Examples
from sweeper.tasks.images import ImageInputs
from sweeper.tasks.text import TextInputs

METRICS = {
    "probe": ("probe_accuracy", "maximize"),
    "causal": ("perplexity", "minimize"),
    "masked": ("masked_perplexity", "minimize"),
}
_BATCH = 32
_BATCH_OF_LOGITS = 8  # over the whole vocabulary
_MASKED = 0.15  # of the tokens, as BERT was pretrained
_HIGHEST = 50.0  # of a mean cross entropy


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """The other set as tables with ``text`` or ``image``, and ``label`` where it is a labelled one.

    ``train`` fits the probe, ``test`` is scored: at most as many rows, alike in their classes. ``max_length`` and
    ``image_size`` are the study's.
    """

    objective: str
    kind: str
    train: pa.Table
    test: pa.Table
    max_length: int | None = None
    image_size: int | None = None

    @classmethod
    def of(cls, spec: StudySpec, prepared: PreparedData, model: Pretrained) -> ProbeData:
        """Take the set that a study names, from where `sweeper.data.prepare.retention_folder` is."""
        asked = spec.task.retention
        assert asked is not None, "asked for a study without it"
        scored = prepared.open_test()
        is_probe = asked.objective == "probe"
        labels = scored.column("label").to_numpy() if is_probe else np.zeros(len(scored), dtype=np.int64)
        return cls(
            objective=asked.objective,
            kind="image" if model.module.main_input_name == "pixel_values" else "text",
            train=prepared.train(),
            test=scored.take(pa.array(subset(labels, asked.max_examples, spec.seed))),
            max_length=spec.task.max_length,
            image_size=spec.task.image_size,
        )


def retained(module: Any, model: Pretrained, data: ProbeData) -> tuple[str, float]:
    """Score a module, the pristine or a trained one of ``model``, on the other set: metric and value.

    Parameters
    ----------
    module:
        On any device; it comes back in evaluation mode.

    Raises
    ------
    InfeasibleError
        When the checkpoint holds no head of its pretraining.
    """
    module.eval()
    if data.objective == "probe":
        score = _probe(module, _open(data.train, model, data), _open(data.test, model, data))
        return METRICS["probe"][0], score
    examples = _open(data.test, model, data)
    if module.get_output_embeddings() is not None:
        return METRICS["causal"][0], _perplexity(module, examples, None)
    return METRICS["masked"][0], _perplexity(_with_own_head(module, model), examples, model.preprocessor)


def _open(table: pa.Table, model: Pretrained, data: ProbeData) -> Examples:
    inputs = ImageInputs(data.image_size) if data.kind == "image" else TextInputs(data.max_length)
    if data.objective != "probe":  # a text is its own target
        zeros = pa.array(np.zeros(len(table), dtype=np.int32))
        table = table.set_column(table.column_names.index("label"), "label", zeros)
    return inputs.open(inputs.encode(table, model.preprocessor), model.preprocessor, 0)


def _batches(examples: Examples, size: int) -> list[NDArray[np.int64]]:
    order = np.argsort(examples.lengths, kind="stable")
    return [order[at : at + size] for at in range(0, len(order), size)]


def _probe(module: Any, train: Examples, test: Examples) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(_features(module, train), train.targets)
    return float(probe.score(_features(module, test), test.targets))


def _features(module: Any, examples: Examples) -> NDArray[np.float32]:
    """Return the body's last states (N, D): their mean over the tokens of a text, or over the places of an image."""
    body = getattr(module, module.base_model_prefix)
    device = next(module.parameters()).device
    found: list[NDArray[np.float32]] = []
    batches = _batches(examples, _BATCH)
    for rows in batches:
        inputs = {name: tensor.to(device) for name, tensor in examples.batch(rows).inputs.items()}
        with torch.no_grad():
            states = body(**inputs).last_hidden_state.float()
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"][:, :, None].float()
            states = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        else:
            states = states.flatten(2).mean(dim=2) if states.dim() == 4 else states.mean(dim=1)
        found.append(states.cpu().numpy())
    features = np.empty((len(examples), found[0].shape[1]), dtype=np.float32)
    for rows, values in zip(batches, found, strict=True):
        features[rows] = values
    return features


def _perplexity(module: Any, examples: Examples, masking: Any) -> float:
    """Return exp of the mean cross entropy: of every next token, or with a tokenizer of tokens that it masks."""
    device = next(module.parameters()).device
    loss, count = 0.0, 0
    for number, rows in enumerate(_batches(examples, _BATCH_OF_LOGITS)):
        inputs = {name: tensor.to(device) for name, tensor in examples.batch(rows).inputs.items()}
        wanted = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        if masking is not None:
            chosen = torch.as_tensor(np.random.default_rng(number).random(tuple(wanted.shape)) < _MASKED, device=device)
            special = torch.as_tensor(masking.all_special_ids, device=device)
            chosen &= (wanted != -100) & ~torch.isin(wanted, special)
            inputs["input_ids"] = inputs["input_ids"].masked_fill(chosen, masking.mask_token_id)
            wanted = wanted.masked_fill(~chosen, -100)
        with torch.no_grad():
            logits = module(**inputs).logits.float()
        if masking is None:
            logits, wanted = logits[:, :-1], wanted[:, 1:]
        summed = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=-100, reduction="sum")
        loss += float(summed)
        count += int((wanted != -100).sum())
    return float(np.exp(min(loss / max(count, 1), _HIGHEST)))


def _with_own_head(module: Any, model: Pretrained) -> Any:
    """Return the checkpoint's masked-language model with the module's body in it."""
    try:
        whole, report = transformers.AutoModelForMaskedLM.from_pretrained(
            model.info.folder, output_loading_info=True, use_safetensors=model.info.is_safe, weights_only=True
        )
    except ValueError:
        raise InfeasibleError(f"task.retention: {model.info.model_type} has no head of masked language") from None
    if report["missing_keys"] or model.preprocessor.mask_token_id is None:
        raise InfeasibleError(f"task.retention: the checkpoint {model.info.name} holds no head of its pretraining")
    body = getattr(module, module.base_model_prefix).state_dict()
    own = getattr(whole, whole.base_model_prefix)
    known = {name: tensor for name, tensor in body.items() if name in own.state_dict()}
    missing = own.load_state_dict(known, strict=False).missing_keys
    if [name for name in missing if "pooler" not in name]:
        raise InfeasibleError(f"task.retention: the body of {model.info.name} does not fit under its own head")
    return whole.to(next(module.parameters()).device).eval()
