"""Unfreezing schedules as pure functions: which groups train from which epoch, and at which share of the rate.

Groups are numbered from the input: 0 embeddings, 1 to n blocks, n + 1 head.
"""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.core.errors import InfeasibleError
from sweeper.train.settings import Settings

ULMFIT_DECAY = 2.6  # each group below trains at the rate of the one above divided by this (Howard and Ruder 2018)


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with one set of trainable groups.

    Parameters
    ----------
    from_epoch:
        Epochs completed when it begins.
    rates:
        By trainable group: its peak learning rate. Groups that are not there are frozen.
    """

    from_epoch: int
    rates: dict[int, float]

    @property
    def lowest(self) -> int:
        """The lowest trainable group: everything below is a frozen prefix."""
        return min(self.rates)


def stages(settings: Settings, num_blocks: int, max_epochs: int, *, trains_head: bool = True) -> tuple[Stage, ...]:
    """Return the stages of a trial, the first at epoch 0, each trainable group with its peak rate.

    Layer-wise decay multiplies the rate by ``layer_decay ** (n + 2 - group)``, 1 for the head: d squared for the top
    block, d ** (n + 2) for the embeddings (ELECTRA, Clark et al. 2020, its published code).

    Parameters
    ----------
    trains_head:
        Whether the head trains where the blocks only get adapters.

    Raises
    ------
    InfeasibleError
        When more blocks are to be unfrozen than there are.
    """
    head = num_blocks + 1
    rate = settings.learning_rate
    decayed = {group: rate * settings.layer_decay ** (head + 1 - group) for group in range(head)} | {head: rate}
    match settings.unfreezing:
        case "full":
            return (Stage(0, decayed),)
        case "head_only":
            return (Stage(0, {head: rate}),)
        case "last_blocks":
            if settings.num_unfrozen_blocks > num_blocks:
                raise InfeasibleError(
                    f"num_unfrozen_blocks: the model has {num_blocks} blocks, got {settings.num_unfrozen_blocks}"
                )
            lowest = head - settings.num_unfrozen_blocks
            return (Stage(0, {group: value for group, value in decayed.items() if group >= lowest}),)
        case "lora":
            own = rate if settings.lora_learning_rate is None else settings.lora_learning_rate
            lowest = head - min(settings.num_adapted_blocks or num_blocks, num_blocks)
            adapted = {group: own * settings.layer_decay ** (head + 1 - group) for group in range(lowest, head)}
            return (Stage(0, adapted | ({head: rate} if trains_head else {})),)
        case "gradual":
            return _gradual(settings, head, max_epochs)
        case _:
            first = Stage(0, {head: settings.head_learning_rate or rate})
            # Both phases get at least one epoch where there are two; one epoch is all of it.
            switch = min(max(1, round(settings.head_fraction * max_epochs)), max(1, max_epochs - 1))
            return (first, Stage(switch, decayed)) if switch < max_epochs else (Stage(0, decayed),)


def _gradual(settings: Settings, head: int, max_epochs: int) -> tuple[Stage, ...]:
    """Unfreeze one more group from the top every ``epochs_per_stage`` epochs, at ULMFiT's discriminative rates."""
    rates = {group: settings.learning_rate / ULMFIT_DECAY ** (head - group) for group in range(head + 1)}
    found = []
    for step, lowest in enumerate(range(head, -1, -1)):
        from_epoch = step * settings.epochs_per_stage
        if from_epoch >= max_epochs:
            break
        found.append(Stage(from_epoch, {group: rates[group] for group in range(lowest, head + 1)}))
    return tuple(found)
