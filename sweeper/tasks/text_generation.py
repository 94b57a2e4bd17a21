"""Text generation: supervised fine-tuning of decoders on prompts and answers; only the answers are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.core.head import HeadSpec, TargetFacts, TargetKind
from sweeper.spec.study import TaskSpec
from sweeper.tasks.base import PLAIN_LOSS, Batch, LossOptions, Metric, NamedTargets
from sweeper.tasks.labelled import Labelled
from sweeper.tasks.metrics import GENERATION, WRITTEN, generation_scores, written_scores
from sweeper.tasks.packed import first_fit, separating_mask, sums_by_owner
from sweeper.tasks.text import DEFAULT_MAX_LENGTH, bucket, pad_token, ragged
from sweeper.tasks.written import as_numbers, as_texts, write_greedily

if TYPE_CHECKING:
    import torch

IGNORED = -100  # transformers' mark of positions that bear no loss


class TextGeneration(Labelled):
    """One answer per prompt. See `Labelled`.

    The prompt is the input column or template, through the tokenizer's chat template where it has one, and bears no
    loss; the answer is the target column, closed by the end token. What is too long loses the beginning of its prompt.
    """

    type: ClassVar[str] = "text-generation"
    input_kind: ClassVar[str | None] = "text"
    target_kind: ClassVar[TargetKind] = "text"
    default_metric: ClassVar[str] = "perplexity"
    max_eval_examples: ClassVar[int] = 8
    """Examples of an evaluation batch at most: logits over the whole vocabulary are large."""

    num_kept: ClassVar[int] = 3

    def __init__(self, spec: TaskSpec, facts: TargetFacts | Sequence[str]) -> None:
        super().__init__(spec, facts)
        self._max_length = spec.max_length or DEFAULT_MAX_LENGTH
        if self.writes and find_spec("sacrebleu") is None:
            remedy = "install the extra: pip install 'fairsweep[generation]'"
            raise InputError(Problem("task.max_new_tokens", "BLEU needs sacrebleu", "not installed", remedy))

    @property
    def head(self) -> HeadSpec:
        """The checkpoint's own language-model head."""
        return HeadSpec(auto_class="AutoModelForCausalLM")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name."""
        return {**GENERATION, **WRITTEN} if self.writes else GENERATION

    @property
    def writes(self) -> bool:
        """Whether evaluations let the model write answers of its own."""
        return self._spec.max_new_tokens is not None

    def cache_key(self) -> str:
        """Encoding depends on the length limit, and on whether prompts are kept for answers of the model's own."""
        return f"generation-2 max_length={self._max_length} writes={self.writes}"

    def encode(self, table: pa.Table, preprocessor: Any) -> pa.Table:
        """Tokenise prompts and answers, and join them.

        Where the model writes answers itself, prompts stand alone too: how much of one it is shown must not depend on
        the length of the answer that is asked for.
        """
        limit = min(self._max_length, preprocessor.model_max_length)
        end = [] if preprocessor.eos_token_id is None else [preprocessor.eos_token_id]
        rows, starts, alone = [], [], []
        answers = table.column("label").to_pylist()
        for prompt, answer in zip(table.column("text").to_pylist(), answers, strict=True):
            asked = _prompt(prompt, preprocessor)
            given = preprocessor(answer, add_special_tokens=False)["input_ids"][: limit - 1 - len(end)] + end
            alone.append(asked[-limit:])
            asked = asked[max(0, len(asked) + len(given) - limit) :]
            rows.append(asked + given)
            starts.append(len(asked))
        columns = {
            "example_id": table.column("example_id"),
            "label": table.column("label"),
            "input_ids": pa.array(rows, pa.list_(pa.int32())),
            "answer_start": pa.array(starts, pa.int32()),
        }
        if self.writes:
            columns["prompt_ids"] = pa.array(alone, pa.list_(pa.int32()))
        return pa.table(columns)

    def open(self, encoded: pa.Table, preprocessor: Any) -> AnswerExamples:
        """Wrap for random access."""
        limit = preprocessor.model_max_length
        if self._spec.max_new_tokens is not None and limit <= self._spec.max_new_tokens:
            rule = "must leave room for a prompt in the length that the model takes"
            raise InputError(
                Problem("task.max_new_tokens", rule, f"{self._spec.max_new_tokens} of {limit}", "lower it")
            )
        return AnswerExamples(encoded, pad_token(preprocessor), min(self._max_length, limit), preprocessor)

    def loss(self, outputs: Any, targets: torch.Tensor, options: LossOptions = PLAIN_LOSS) -> torch.Tensor:
        """Return the mean cross entropy of each example's answer tokens (B,): every example counts alike."""
        assert replace(options, label_smoothing=0.0) == PLAIN_LOSS, "refused before"
        if targets.dim() == 3:  # of `packed`
            tokens, owners = targets.unbind(dim=-1)
            losses, bears = _token_losses(outputs, tokens, options.label_smoothing)
            count, owners = int(owners.max()) + 1, owners[:, 1:]
            return sums_by_owner(losses, owners, count) / sums_by_owner(bears, owners, count).clamp_min(1)
        losses, bears = _token_losses(outputs, targets, options.label_smoothing)
        return losses.sum(dim=1) / bears.sum(dim=1).clamp_min(1)

    def packed(self, examples: AnswerExamples, rows: NDArray[np.int64]) -> Batch:
        """Gather B examples in fewer rows, kept apart: see `AnswerExamples.packed`."""
        return examples.packed(rows)

    def predict(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Return each answer's summed cross entropy, its tokens, and how many were the most probable ones (B, 3)."""
        import torch

        losses, bears = _token_losses(outputs, targets, 0.0)
        hits = (outputs.logits[:, :-1].argmax(dim=-1) == targets[:, 1:]) & bears
        return torch.stack([losses.sum(dim=1), bears.sum(dim=1).float(), hits.sum(dim=1).float()], dim=1)

    def write(
        self, module: Any, examples: AnswerExamples, rows: NDArray[np.int64], device: torch.device
    ) -> NDArray[np.float32]:
        """Return the answers that a model writes by itself, as code points (B, C)."""
        assert self._spec.max_new_tokens is not None, "asked of a task that writes nothing"
        longest = examples.tokenizer.model_max_length - self._spec.max_new_tokens
        inputs = {name: tensor.to(device) for name, tensor in examples.prompts(rows, longest).items()}
        return as_numbers(write_greedily(module, inputs, self._spec.max_new_tokens, examples.tokenizer))

    def decide(self, predictions: NDArray[Any], threshold: float | None = None) -> NDArray[Any]:  # noqa: ARG002
        """Return the texts that were written (N,); without any 1 where greedy decoding gives the answer, else 0."""
        if self.writes:
            return as_texts(predictions[:, self.num_kept :])
        return np.equal(predictions[:, 1], predictions[:, 2]).astype(np.int64)  # type: ignore[no-any-return]

    def score(
        self,
        targets: NDArray[Any],
        predictions: NDArray[Any],
        threshold: float | None = None,  # noqa: ARG002
    ) -> dict[str, float]:
        """Score what `predict` kept (N, 3), and what was written behind it."""
        scores = generation_scores(predictions[:, : self.num_kept])
        return {**scores, **written_scores(targets, self.decide(predictions))} if self.writes else scores

    def baseline(self, train: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Score the most frequent training answer; it has no perplexity."""
        answers, counts = np.unique(train, return_counts=True)
        usual = answers[counts.argmax()]
        scores = {"exact_match": float(np.mean(targets == usual))}
        return {**scores, **written_scores(targets, np.full(len(targets), usual))} if self.writes else scores


def _prompt(text: str, tokenizer: Any) -> list[int]:
    """Return a prompt's tokens: by the chat template, else the text and a line break, after the first token if any."""
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": text}]
        made = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(made["input_ids"])
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    joined = text if text[-1:].isspace() else f"{text}\n"
    return begin + list(tokenizer(joined, add_special_tokens=False)["input_ids"])


def _token_losses(outputs: Any, targets: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cross entropy and whether it counts, of each position but the first (B, L - 1), in fp32."""
    from torch.nn import functional

    logits, wanted = outputs.logits[:, :-1].float(), targets[:, 1:]
    losses = functional.cross_entropy(
        logits.transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )
    return losses, wanted != IGNORED


class AnswerExamples(NamedTargets):
    """Prompts and answers in Arrow memory, padded per batch; prompts and padding are masked in the targets."""

    def __init__(self, table: pa.Table, pad_token_id: int, max_length: int, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._pad, self._max_length = pad_token_id, max_length
        self._offsets, self._values = ragged(table, "input_ids")
        self._starts = table.column("answer_start").to_numpy()
        self._prompts = ragged(table, "prompt_ids") if "prompt_ids" in table.column_names else None
        super().__init__(table, np.asarray(table.column("label").to_pylist()))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt with its answer (N,)."""
        return np.diff(self._offsets)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Gather B rows, padded on the right to a bucket bound: inputs and targets (B, L)."""
        import torch

        lengths = self.lengths[indices]
        width = bucket(int(lengths.max()), self._max_length)
        at = np.arange(width)
        inside = at < lengths[:, None]
        tokens = np.full(inside.shape, self._pad, dtype=np.int64)
        tokens[inside] = self._values[(self._offsets[indices][:, None] + at)[inside]]
        targets = np.where(inside & (at >= self._starts[indices][:, None]), tokens, IGNORED)
        inputs = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(inside.astype(np.int64))}
        return Batch(inputs=inputs, targets=torch.from_numpy(targets))

    def packed(self, indices: NDArray[np.int64]) -> Batch:
        """Lay B examples end to end in R rows; targets (R, L, 2) are tokens and the example that each belongs to.

        Positions begin anew with each example, and attention ends at its beginning, so each is computed as if alone.
        """
        import torch

        lengths = self.lengths[indices]
        rows, begins = first_fit(lengths, self._max_length)
        shape = int(rows.max()) + 1, bucket(int((begins + lengths).max()), self._max_length)
        tokens, owners = np.full(shape, self._pad, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        targets, positions = np.full(shape, IGNORED, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for example, (index, row, begin, length) in enumerate(zip(indices, rows, begins, lengths, strict=True)):
            place = row, slice(begin, begin + length)
            tokens[place] = self._values[self._offsets[index] : self._offsets[index + 1]]
            owners[place], positions[place] = example, np.arange(length)
            answer = row, slice(begin + max(1, self._starts[index]), begin + length)  # nothing predicts a first token
            targets[answer] = tokens[answer]
        inputs = {
            "input_ids": torch.from_numpy(tokens),
            "position_ids": torch.from_numpy(positions),
            "attention_mask": separating_mask(torch.from_numpy(owners)),
        }
        return Batch(inputs=inputs, targets=torch.from_numpy(np.stack([targets, owners], axis=-1)))

    def prompts(self, indices: NDArray[np.int64], longest: int) -> dict[str, torch.Tensor]:
        """Gather the ends of B prompts, at most ``longest`` tokens of each, padded on the left: (B, L) int64."""
        import torch

        assert self._prompts is not None, "asked of a task that writes nothing"
        offsets, values = self._prompts
        ends = offsets[indices + 1].astype(np.int64)
        lengths = np.minimum(ends - offsets[indices], longest)
        width = max(1, bucket(int(lengths.max()), longest))
        at = np.arange(width) - width + lengths[:, None]  # below 0: padding
        tokens = np.full(at.shape, self._pad, dtype=np.int64)
        first = ends - lengths
        tokens[at >= 0] = values[(first[:, None] + at)[at >= 0]]
        return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy((at >= 0).astype(np.int64))}
