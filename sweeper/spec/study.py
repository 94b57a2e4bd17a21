"""The study file as typed objects. Every key has a documented default; unknown keys are errors.

These classes hold what the user wrote, checked key by key. Nothing here touches data, models or Ray.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from sweeper.core.budget import Budget
from sweeper.core.objective import Goal

SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _safe_name(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            "must be 1 to 100 letters, digits, '.', '_' or '-', starting with a letter or digit, without '..'"
        )
    return name


Name = Annotated[str, AfterValidator(_safe_name)]
"""A name that is safe as a folder, a W&B run and in a report."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(_Section):
    """Where the examples come from: files, folders, fractions of train, a hub id, or ``builtin:NAME``."""

    train: str = Field(description="file, folder, hub id or builtin:NAME")
    validation: str | float = Field(0.15, description="like train, or the share of train to split off")
    test: str | float = Field(0.2, description="like train, or the share of train to split off first; sealed")
    group: str | None = Field(None, description="column whose values must not be split over train and validation")
    time: str | None = Field(
        None, description="column by which shares are split: test is the latest part, validation the one before"
    )
    revision: str | None = Field(None, description="revision of a hub data set")
    images: str | None = Field(
        None, description="detection: folder of the images that a COCO file names; None: found beside it"
    )
    max_train_examples: int | None = Field(
        None, ge=1, description="stratified subset of the train split; None: all of it"
    )

    @field_validator("validation", "test")
    @classmethod
    def _share(cls, value: str | float) -> str | float:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share must lie between 0 and 1, both excluded")
        return value


class TemplateSpec(_Section):
    """A text rendered from several columns."""

    template: str = Field(min_length=1, description="text with {column} where a row's value goes; {{ is a brace")


class ColumnsSpec(_Section):
    """Which columns are the input and the target. None: the task's usual names are looked for."""

    input: str | list[str] | TemplateSpec | None = Field(
        None,
        description="input column; a list of two text columns is a pair, any other list a record rendered as "
        "`name: value`; {template: ...} renders a record its own way",
    )
    target: str | None = Field(None, description="target column")
    kind: Literal["text", "image"] | None = Field(
        None, description="what the input is, for tasks that take both; None: images where train is a folder"
    )
    separator: str = Field(",", min_length=1, description="between several labels in one cell of the target")
    significant_digits: int = Field(4, ge=1, le=17, description="of numbers rendered in records")


class MetricSpec(_Section):
    """The validation metric that search optimises."""

    name: str = Field(description="a metric of the task")
    goal: Goal | None = Field(None, description="None: follows the metric")


class RetentionSpec(_Section):
    """What each confirmed model still knows of something else, against its checkpoint: how much fine-tuning forgot."""

    data: str = Field(description="another set of the same kind of input: file, folder, hub id or builtin:NAME")
    columns: ColumnsSpec = Field(default_factory=ColumnsSpec)
    objective: Literal["probe", "pretraining"] = Field(
        "probe",
        description="probe: a logistic regression on the frozen body's features, fitted on one half of the set and "
        "scored on the other; pretraining: the language-model or masked-language perplexity of the input column",
    )
    max_examples: int = Field(1000, ge=8, description="most examples that fit the probe, and most that are scored")


TASKS = (
    "text-classification | image-classification | multi-label-classification | regression | text-generation | "
    "object-detection | package.module:Class"
)


class TaskSpec(_Section):
    """The task, its data and its metric."""

    type: str = Field(description=TASKS)
    data: DataSpec
    columns: ColumnsSpec = Field(default_factory=ColumnsSpec)
    metric: MetricSpec | None = Field(None, description="None: the task's default metric")
    balance: Literal["none", "class-weights", "sampler"] = Field(
        "none", description="remedy for class imbalance, applied to train only"
    )
    loss: Literal["mse", "huber"] = Field("mse", description="regression: squared error, or Huber's with delta 1")
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["validation"] | None = Field(
        None,
        description="two classes: probability from which the second is chosen; validation: the best one there; "
        "None: the more probable class",
    )
    costs: list[Annotated[float, Field(ge=0)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="two classes: what calling the first one the second costs, and what missing the second costs; adds "
        "the metric `expected_cost`",
    )
    max_length: int | None = Field(
        None, ge=4, description="text: longest input in tokens; None: 256, or less where the model takes less"
    )
    retention: RetentionSpec | None = Field(None, description="another set on which forgetting is measured")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="text generation: most tokens of the answers that the model writes at each evaluation, which adds "
        "the metrics `generated_match`, `bleu` and `chrf`; None: it writes none, which is much faster",
    )
    image_size: int | None = Field(None, ge=8, description="images: side in pixels; None: the processor's own")


class ModelSpec(_Section):
    """One pretrained model of the comparison."""

    name: Name
    checkpoint: str = Field(description="local folder or hub id")
    revision: str | None = None
    space: str | None = Field(None, description="search-space file; None: the preset of the model's family")
    space_overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="changes to the space, by parameter and key"
    )
    allow_bin: bool = Field(False, description="load a pickle .bin checkpoint with weights_only=True")
    trust_remote_code: bool = False
    node_labels: dict[str, str] = Field(
        default_factory=dict,
        description="labels of the nodes that take this model's lanes, beside training.node_labels; such as "
        "{ray.io/accelerator-type: A100}",
    )
    blocks: str | None = Field(
        None, description="dotted path of the module list that holds the blocks; None: found generically"
    )


class SchedulerSpec(_Section):
    """Early stopping of trials."""

    type: Literal["asha", "asha-promotion", "hyperband", "median", "none"] = Field(
        "asha-promotion",
        description="asha: stopping at rungs; asha-promotion: trials wait at rungs and go on once they earn it; "
        "hyperband: brackets of asha; median: below the median of all at that epoch",
    )
    reduction_factor: int = Field(
        3, ge=2, description="one trial in this many passes each rung; asha-promotion: half do in the end"
    )
    grace_fraction: float = Field(
        0.04,
        gt=0,
        le=1,
        description="share of max_epochs before the first rung, rounded up to whole epochs, at least two; no trial is "
        "judged before its warm-up and its last unfreezing lie behind",
    )


class SearchSpec(_Section):
    """How much is searched, and how. Equal for all models."""

    num_trials: int = Field(32, ge=1, description="trials for each model, the default configuration included")
    max_epochs: int = Field(8, ge=1)
    sampler: Literal["auto", "tpe", "random", "qmc", "gp", "cmaes"] = "auto"
    scheduler: SchedulerSpec = Field(default_factory=SchedulerSpec)
    max_concurrent_trials: int | Literal["auto"] = Field("auto", description="lanes; 1 is deterministic")
    device_hours_per_model: float | None = Field(
        None, gt=0, description="limit for search and confirmation; what trials need that were begun is kept back"
    )
    time_budget_seconds: float | None = Field(None, gt=0, description="the same by the clock, for the whole study")
    space: str | None = Field(None, description="search-space file forced on all models")
    points_to_evaluate: list[dict[str, Any]] | dict[Name, list[dict[str, Any]]] = Field(
        default_factory=list,
        description="first trials after the default: a list for all models, or lists of equal length by model; what "
        "a point leaves out is the default's",
    )
    warm_start: str | None = Field(
        None, description="results of an earlier study, whose best configurations of each model are tried first"
    )

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("max_concurrent_trials")
    @classmethod
    def _lanes(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value

    @property
    def budget(self) -> Budget:
        """The effort each model gets."""
        return Budget(
            num_trials=self.num_trials,
            max_epochs=self.max_epochs,
            device_hours_per_model=self.device_hours_per_model,
            time_budget_seconds=self.time_budget_seconds,
        )


class TrainingSpec(_Section):
    """What one lane is."""

    num_workers: int = Field(1, ge=1, description="Ray Train workers of a lane; DDP from 2 on")
    resources_per_worker: dict[str, float | Literal["auto"]] | Literal["auto"] = Field(
        "auto",
        description="for instance {CPU: 1} or {CPU: 4, GPU: 0.5}; auto: a GPU where there is one, else a core; "
        "{GPU: auto}: as many lanes to a GPU as fit its memory by a probe",
    )
    node_labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that take lanes, such as {accelerator: l4}"
    )
    placement: Literal["pack", "strict_pack", "spread"] = Field(
        "pack", description="workers of one lane: on few nodes, on one node, or over many"
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    activation_cache: bool | Literal["auto"] = Field(
        "auto", description="keep the states of frozen blocks instead of computing them in every step; auto: on CPUs"
    )
    activation_cache_gigabytes: float = Field(10, gt=0, description="most disk that these states may take")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several workers: the model on each, or shared out over them (larger than one GPU)"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute states again in the backward pass instead of keeping them: less memory, more time"
    )
    packing: bool = Field(
        False,
        description="text generation: training examples share rows of max_length, kept apart; for much shorter texts",
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="most examples a worker holds at once; gradients accumulate up to batch_size"
    )
    max_trial_retries: int = Field(2, ge=0, description="lane deaths without a new epoch that a trial survives")
    epoch_timeout_seconds: float = Field(3600, gt=0, description="a lane silent for longer is restarted")
    snapshot_seconds: float = Field(60, ge=0, description="a trial's state is saved at most this often, at epoch ends")

    @field_validator("resources_per_worker")
    @classmethod
    def _packs_what_can_be_packed(cls, value: dict[str, Any] | str, info: ValidationInfo) -> dict[str, Any] | str:
        for name, amount in {} if isinstance(value, str) else value.items():
            if amount == "auto" and name != "GPU":
                raise ValueError(f"{name} must be a number: only GPU may be auto")
            if amount == "auto" and info.data.get("num_workers", 1) > 1:
                raise ValueError("GPU may be auto where a lane has one worker: several need whole GPUs")
        return value

    @property
    def is_packed(self) -> bool:
        """Whether a probe says how many lanes share a GPU."""
        return not isinstance(self.resources_per_worker, str) and self.resources_per_worker.get("GPU") == "auto"

    @property
    def fixed_resources(self) -> dict[str, float]:
        """What a worker asks for, apart from what is ``auto``."""
        if isinstance(self.resources_per_worker, str):
            return {}
        return {name: amount for name, amount in self.resources_per_worker.items() if not isinstance(amount, str)}

    def caches_activations(self, device: str) -> bool:
        """Whether the states of frozen blocks are kept on a device; never of a model that is shared out."""
        if self.strategy == "fsdp":
            return False
        return device == "cpu" if self.activation_cache == "auto" else self.activation_cache


class ConfirmSpec(_Section):
    """Retraining of winner and default with fresh seeds, then the sealed test split."""

    num_seeds: int | Literal["auto"] = Field(
        "auto", description="auto: the fewest with which the paired test can reach 5% after Holm"
    )
    vary: list[Literal["seed", "split"]] = Field(
        default=["seed"],
        min_length=1,
        description="split: each seed also draws train and validation anew; the test split stays; "
        "confirmations.parquet then has split_seed",
    )
    delta: float | None = Field(
        None, gt=0, description="differences within it, in units of the metric, count as a tie; None: no tie is claimed"
    )

    @field_validator("num_seeds")
    @classmethod
    def _seeds(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or auto")
        return value


class WandbSpec(_Section):
    """Weights & Biases. None: W&B's own environment variables decide."""

    project: str | None = Field(None, description="None: WANDB_PROJECT, or W&B's own default")
    entity: str | None = Field(None, description="None: WANDB_ENTITY, or the user's own")
    mode: Literal["online", "offline", "disabled", "shared"] | None = Field(
        None, description="None: WANDB_MODE, or online"
    )
    host: str | None = Field(None, description="address of the server; None: WANDB_BASE_URL, or W&B's own")
    tags: list[str] = Field(default_factory=list, description="added to every run")
    notes: str | None = Field(None, description="added to every run")

    @field_validator("host")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            raise ValueError("must be http(s)://HOST[:PORT] without user or key: those come from W&B's own places")
        return value.rstrip("/") if value is not None else None


class MlflowSpec(_Section):
    """MLflow, by the extra ``mlflow``. None: MLflow's own environment variables decide."""

    tracking_uri: str | None = Field(None, description="None: MLFLOW_TRACKING_URI, or mlflow.db in the result folder")
    experiment: str | None = Field(None, description="None: the study's name")

    @field_validator("tracking_uri")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is not None and re.match(r"[^:/]+://[^/\s]*@", value):
            raise ValueError("must not hold a user or password: leave it out and set MLFLOW_TRACKING_URI")
        return value


TRACKERS = "sweeper.trackers"
"""Group of entry points that are trackers: called with their options, they return a `sweeper.track.base.Tracker`."""


class TrackingSpec(_Section):
    """Where trials are followed beside the terminal. No failure there costs the study anything."""

    wandb: WandbSpec | None = None
    mlflow: MlflowSpec | None = None
    tensorboard: bool = Field(False, description="write event files into RESULTS/tensorboard")
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="trackers of other packages, with their options: by entry point (group sweeper.trackers) or "
        "package.module:Class",
    )

    @field_validator("plugins")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        installed = sorted(entry_points(group=TRACKERS).names) if value else []
        unknown = [name for name in value if ":" not in name and name not in installed]
        if unknown:
            raise ValueError(
                f"no installed package offers {', '.join(unknown)} in the group {TRACKERS} (installed: "
                f"{', '.join(installed) or 'none'}); install it, or give package.module:Class"
            )
        return value


class ClusterSpec(_Section):
    """Where the study runs: a profile's name, or the address of a running Ray."""

    profile: str = "local"
    address: str | None = None


class StudySpec(_Section):
    """A whole study."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    name: Name
    seed: int = Field(0, ge=0, lt=2**31)
    storage_path: str = Field(
        "results",
        description="a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; s3 also ?region=, endpoint_override=, scheme=",
    )
    task: TaskSpec
    models: list[ModelSpec] = Field(min_length=1)
    search: SearchSpec = Field(default_factory=SearchSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    confirm: ConfirmSpec = Field(default_factory=ConfirmSpec)
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)
    cluster: ClusterSpec = Field(default_factory=ClusterSpec)

    @field_validator("cluster", mode="before")
    @classmethod
    def _cluster(cls, value: Any) -> Any:
        return {"profile": value} if isinstance(value, str) else value

    @field_validator("models")
    @classmethod
    def _unique(cls, models: list[ModelSpec]) -> list[ModelSpec]:
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names must be unique, {', '.join(twice)} stands more than once")
        return models
