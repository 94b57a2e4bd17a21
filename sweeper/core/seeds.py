"""Seeds derived from names, so that no random stream depends on the order of events."""

from __future__ import annotations

import hashlib

SEED_BITS = 31  # fits numpy, torch, Optuna and a signed 32-bit column


def derive_seed(*parts: str | int) -> int:
    """Return a seed in ``[0, 2**31)`` that depends on ``parts`` only (BLAKE2b, stable over versions)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - SEED_BITS)


def search_seed(study_seed: int, model: str, number: int) -> int:
    """Seed of search trial ``number`` of ``model``: always even, so never a confirmation seed."""
    return derive_seed(study_seed, "search", model, number) & ~1


def confirmation_seed(study_seed: int, index: int) -> int:
    """Seed of confirmation run ``index``: always odd; the same for all models, so that runs pair."""
    return derive_seed(study_seed, "confirm", index) | 1
