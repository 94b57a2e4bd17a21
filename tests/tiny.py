"""Tiny models and studies that tests share."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

hf.utils.logging.set_verbosity_error()
hf.utils.logging.disable_progress_bar()

_TEXT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 64}
_STAGES = {"hidden_sizes": [8, 16], "depths": [2, 1]}
WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(62))]


def bodies() -> dict[str, hf.PreTrainedModel]:
    """Build one body for each family that sweeper promises."""
    return {
        "bert": hf.BertModel(hf.BertConfig(**_TEXT)),
        "roberta": hf.RobertaModel(hf.RobertaConfig(**_TEXT, pad_token_id=0)),
        "deberta": hf.DebertaV2Model(hf.DebertaV2Config(**_TEXT, relative_attention=True, position_buckets=8)),
        "electra": hf.ElectraModel(hf.ElectraConfig(**_TEXT, embedding_size=16)),
        "distilbert": hf.DistilBertModel(
            hf.DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=64, vocab_size=64)
        ),
        "resnet": hf.ResNetModel(hf.ResNetConfig(embedding_size=8, layer_type="basic", **_STAGES)),
        "bottleneck": hf.ResNetModel(hf.ResNetConfig(embedding_size=8, **_STAGES)),
        "vit": hf.ViTModel(
            hf.ViTConfig(
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=16,
                patch_size=4,
            )
        ),
        "convnext": hf.ConvNextModel(hf.ConvNextConfig(num_stages=2, patch_size=2, **_STAGES)),
        "convnextv2": hf.ConvNextV2Model(hf.ConvNextV2Config(num_stages=2, patch_size=2, **_STAGES)),
        "swin": hf.SwinModel(
            hf.SwinConfig(embed_dim=8, depths=[2, 1], num_heads=[2, 2], image_size=16, patch_size=2, window_size=4)
        ),
    }


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Return a whitespace tokenizer over 64 words."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    )


def save_checkpoints(folder: Path) -> dict[str, Path]:
    """Save every family with its preprocessor."""
    torch.manual_seed(0)
    processor = hf.ViTImageProcessor(size={"height": 16, "width": 16})
    found = {}
    for name, body in bodies().items():
        found[name] = folder / name
        body.save_pretrained(found[name])
        (processor if body.main_input_name == "pixel_values" else tokenizer()).save_pretrained(found[name])
    return found


SPACE = """
parameters:
  learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
  batch_size: {type: categorical, choices: [8, 16]}
  dropout: {type: float, low: 0.0, high: 0.3}
  unfreezing: {type: categorical, choices: [full, head_only, gradual]}
  epochs_per_stage: {type: int, low: 1, high: 2, when: {unfreezing: gradual}}
default: {learning_rate: 3e-3, batch_size: 16, dropout: 0.1, unfreezing: full}
"""


def write_study(
    folder: Path, checkpoints: dict[str, Path], *, name: str = "tiny", models=("vit", "resnet"), **search
) -> Path:
    """Write a study on the digits 5 to 9 that trains in seconds."""
    (folder / "space.yaml").write_text(SPACE)
    entries = "\n".join(f"  - {{name: {model}, checkpoint: {checkpoints[model]}}}" for model in models)
    options = {"num_trials": 4, "max_epochs": 4, "max_concurrent_trials": 1, "space": "space.yaml", **search}
    text = f"""
schema: 1
name: {name}
task:
  type: image-classification
  data: {{train: "builtin:digits?classes=5-9", max_train_examples: 60}}
models:
{entries}
search: {{{", ".join(f"{key}: {value}" for key, value in options.items())}}}
confirm: {{num_seeds: 2}}
"""
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def detectors() -> dict[str, tuple[hf.PreTrainedModel, object]]:
    """Build a detector of each family that sweeper promises, five classes each, with its processor."""
    backbone = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    body = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "num_labels": 5}
    three = {"out_features": ["stage2", "stage3", "stage4"]}
    hybrid = {
        **body,
        "encoder_hidden_dim": 32,
        "encoder_layers": 1,
        "encoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "num_queries": 20,
        "num_denoising": 10,
        "decoder_in_channels": [32, 32, 32],
    }
    stages = {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 8, 16],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [8, 8, 16, 16],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
    }
    rt_backbone = hf.RTDetrResNetConfig(**backbone, **three)
    fine_backbone = hf.HGNetV2Config(
        **stages, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], embedding_size=8, **three
    )
    yolos = hf.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=10,
        num_labels=5,
    )
    detr = hf.DetrConfig(
        backbone_config=hf.ResNetConfig(**backbone, out_features=["stage4"]),
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        num_queries=10,
        **body,
    )
    rt = {"backbone_config": rt_backbone, "encoder_in_channels": [8, 16, 16], **hybrid}
    fine = {"backbone_config": fine_backbone, "encoder_in_channels": [8, 16, 16], **hybrid}
    return {
        "yolos": (hf.YolosForObjectDetection(yolos), hf.YolosImageProcessor()),
        "detr": (hf.DetrForObjectDetection(detr), hf.DetrImageProcessor()),
        "rt_detr": (hf.RTDetrForObjectDetection(hf.RTDetrConfig(**rt)), hf.RTDetrImageProcessor()),
        "rt_detr_v2": (hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(**rt)), hf.RTDetrImageProcessor()),
        "d_fine": (hf.DFineForObjectDetection(hf.DFineConfig(**fine)), hf.RTDetrImageProcessor()),
    }
