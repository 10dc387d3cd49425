"""What a resumed run may change of its recipe, and what it may not: every key of a recipe has its class here.

free: it takes effect from the resumed step on, and is reported.
fork: it would give the optimiser's state, the data order or the scores so far another meaning; a new run may have it
    that starts from the weights of a checkpoint (`--fork NEW_NAME`).
new: the weights have it in them, so only a run from scratch may have another value.
place: which run it is; nothing of it is compared.
"""

from __future__ import annotations

from typing import Literal

Class = Literal["free", "fork", "new", "place"]


def _named(group: str, names: str) -> list[str]:
    return [f"{group}.{name}" for name in names.split()]


_SCHEDULE = "steps epochs learning_rate lr_schedule warmup_steps warmup_ratio min_lr_ratio decay_fraction"
_OPTIMIZER = "weight_decay adam_betas adam_epsilon max_grad_norm dropout"
_MACHINE = (
    "micro_batch_size precision gradient_checkpointing recompute_elementwise compile attention_backend loss_chunk_rows "
    "deepspeed_config"
)
_RECORDS = (
    "logging_steps probe_rows detailed_metrics_steps attention_analysis_steps eval_steps save_steps save_epochs "
    "keep_checkpoints report_to tracker_tags project run_tags"
)
_SHAPE = (
    "from_pretrained family hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim max_position_embeddings rope_theta tie_word_embeddings initializer_range"
)
_TEXT = (
    "format train validation validation_fraction split text_field separator prompt_field answer_field ignored_fields "
    "malformed max_tokens context_length neat_packing chat_template supervise pad_mode eos_cap over_long "
    "validation_split overlap weights max_line_bytes max_expansion streaming shuffle_rows"
)
_OBJECTIVE = (
    "method schedule schedule_power corruption time_sampling t_granularity time_epsilon random_length_probability "
    "weighting normalize input_mask_ratio block_length block_curriculum mask_ratio_range complementary_masks "
    "tidar_layout clean_ratio clean_ratio_range clean_ratio_curriculum tail_blocks masking mask_ratio_curriculum "
    "ar_loss_weight ar_loss_weight_curriculum diffusion_loss_weight diffusion_loss_weight_curriculum teacher "
    "distillation_weight distillation_temperature logit_shift"
)
CLASSES: dict[str, Class] = {
    **dict.fromkeys(("name", "output_dir"), "place"),
    **dict.fromkeys(_named("training", f"{_SCHEDULE} {_OPTIMIZER} {_MACHINE} {_RECORDS}"), "free"),
    **dict.fromkeys(("data.cache_dir", "evaluation.batch_size", "adapter.dropout", "sampling"), "free"),
    **dict.fromkeys(("seed", "training.batch_size", "training.ema_decay", "model.dtype"), "fork"),
    **dict.fromkeys(_named("data", _TEXT), "fork"),
    **dict.fromkeys(_named("objective", _OBJECTIVE), "fork"),
    **dict.fromkeys(_named("evaluation", "masks_per_sequence max_rows seed"), "fork"),
    **dict.fromkeys(_named("model", _SHAPE), "new"),
    **dict.fromkeys(_named("adapter", "rank alpha targets quantization"), "new"),
    **dict.fromkeys(("data.tokenizer", "data.vocabulary_size"), "new"),
}
"""The class of each key, or of each key of a group."""


def class_of(key: str) -> Class | None:
    """The class of a key, its own or its group's; None for one that has none."""
    return CLASSES.get(key) or CLASSES.get(key.partition(".")[0])
