"""The spellings of other frameworks and of older TRL: whose name a key is, and what prefopt calls it.

A table and nothing else; `names.py` turns it into messages.
"""

from __future__ import annotations

from typing import NamedTuple

_TRL, _HF = "TRL", "transformers"
_OLD_TRL, _OLD_HF, _HANDBOOK = "older TRL", "older transformers", "alignment-handbook"
_LF, _AX, _OR, _TT = "LLaMA-Factory", "axolotl", "OpenRLHF", "torchtune"


class Foreign(NamedTuple):
    """A key of another framework.

    Attributes:
        framework: Whose name it is.
        ours: The key here; empty where prefopt has none.
        note: What to write instead, where a name alone does not say it.
        elsewhere: What to say where the key here is none of the stage's.
    """

    framework: str
    ours: str = ""
    note: str = ""
    elsewhere: str = ""


_FLASH = "write `attn_implementation: flash_attention_2` under 'model'"
_TO_DATA = "name it once under 'data', then `data: NAME` in the stage"
_MIXTURE = "name each set under 'data', with 'weight'; then `data: [A, B]` in the stage"
_BOUNDS = (
    "no longer needed: 'max_length' bounds prompt and completion together, 'overlong' of the data says what is cut"
)
_NEVER_CUT = "no longer needed: completions are never cut; 'max_length' bounds the whole"
_EVAL_STEPS = "a stage evaluates at its end, and every 'eval_steps' before"
_RESUME = "the same command resumes from the newest checkpoint that verifies; leave it out"
_ADAMW = "the optimiser is AdamW: 'adam_beta1', 'adam_beta2', 'adam_epsilon', 'weight_decay'"
_WANDB = "write `tracking: {wandb: {project: NAME}}`"
_OWN_TOKENIZER = "the model's own tokenizer is used; leave it out"
_MODEL_NAME = "model_name_or_path"
_TARGETS = "lora_target_modules"
_PER_DEVICE = "per_device_train_batch_size"
_PASSES = "per_device_eval_batch_size"
_KL = "write `kl: {coefficient: 0.05}` in the stage"
_STOP_ABOVE = "write `kl: {stop_above: 10}` in the stage"
_ESTIMATOR = "write `kl: {estimator: k1}` in the stage"
_ADAPTIVE = "write `kl: {adaptive_target: 6.0, horizon: 10000}` in the stage"
_REWARD = "train it in a stage and name that, `reward: NAME`; or write `reward: {pretrained: PATH}`"
_FUNCTIONS = "register it in a package, then `reward: {function: NAME}`"
_WEIGHTED = "write `reward: {weighted: [{model: NAME, weight: 1.0}, …]}`"
_NORMALISE = "write `reward: {model: NAME, normalise: reference}`"
_CLIP = "write `reward: {model: NAME, clip: 5}`"
_MINIBATCHES = (
    "a rollout is cut into 'num_mini_batches' minibatches, and those into passes of per_device_train_batch_size"
)
_VALUE = "the value function starts from the policy: `value: adapter` or `value: shared`"
_KINDS = "`stages: {NAME: {kind: dpo, …}}`; the kind for rm is reward"

FOREIGN: dict[str, Foreign] = {
    # the model
    "torch_dtype": Foreign(_OLD_HF, "dtype"),
    "bf16": Foreign(_HF, "dtype", "write `dtype: bfloat16` under 'model'"),
    "fp16": Foreign(_HF, "dtype", "write `dtype: float16` under 'model'"),
    "tf32": Foreign(_AX, "", "leave it out"),
    "pure_bf16": Foreign(_LF, "dtype", "write `dtype: bfloat16` under 'model'"),
    "base_model": Foreign(_AX, _MODEL_NAME),
    "base_model_config": Foreign(_AX, _MODEL_NAME),
    "model_name": Foreign("NeMo RL", _MODEL_NAME),
    "pretrain": Foreign(_OR, _MODEL_NAME),
    "checkpointer": Foreign(_TT, _MODEL_NAME),
    "checkpoint_dir": Foreign(_TT, _MODEL_NAME),
    "_component_": Foreign(_TT, "", "a recipe names no classes: `kind` says what a stage does"),
    "tokenizer": Foreign(_OLD_TRL, "", _OWN_TOKENIZER),
    "tokenizer_name_or_path": Foreign(_HANDBOOK, "", _OWN_TOKENIZER),
    "tokenizer_type": Foreign(_AX, "", _OWN_TOKENIZER),
    "model_type": Foreign(_AX, "", "the model's own configuration says it; leave it out"),
    "template": Foreign(_LF, "chat_template"),
    "flash_attn": Foreign(_LF, "attn_implementation", _FLASH),
    "flash_attention": Foreign(_AX, "attn_implementation", _FLASH),
    "use_flash_attention_2": Foreign(_OLD_TRL, "attn_implementation"),
    "quantization_bit": Foreign(_LF, "load_in_4bit", "write `load_in_4bit: true` under 'model'"),
    "load_in_8bit": Foreign(_HF, "load_in_4bit", "4 bits are what prefopt offers: `load_in_4bit: true` under 'model'"),
    # LoRA
    "use_peft": Foreign(_TRL, "", "every stage trains a LoRA adapter; leave it out"),
    "adapter": Foreign(_AX, "", "every stage trains LoRA; for qlora write `load_in_4bit: true` under 'model'"),
    "finetuning_type": Foreign(_LF, "", "every stage trains a LoRA adapter; leave it out"),
    "lora_rank": Foreign(_LF, "lora_r"),
    "lora_target": Foreign(_LF, _TARGETS),
    "target_modules": Foreign("PEFT", _TARGETS),
    "lora_target_linear": Foreign(_AX, _TARGETS, "write `lora_target_modules: all-linear` under 'model.lora'"),
    "lora_attn_modules": Foreign(_TT, _TARGETS),
    "lora_task_type": Foreign(_TRL, "", "the stage's kind decides it; leave it out"),
    "r": Foreign("PEFT", "lora_r"),
    "peft_config": Foreign(_TRL, "lora"),
    "adapter_name_or_path": Foreign(_LF, "init", "a stage starts from another stage: `init: NAME`"),
    "create_new_adapter": Foreign(_LF, "", "a stage with `init` trains a copy and keeps the original as reference"),
    "lora_model_dir": Foreign(_AX, "init", "a stage starts from another stage: `init: NAME`"),
    # data
    "dataset_name": Foreign(_TRL, "data", _TO_DATA),
    "dataset": Foreign(_LF, "data", _TO_DATA),
    "datasets": Foreign(f"{_TRL} and {_AX}", "data"),
    "dataset_mixture": Foreign(_HANDBOOK, "data", _MIXTURE),
    "dataset_mixer": Foreign(_HANDBOOK, "data", _MIXTURE),
    "dataset_dir": Foreign(_LF, "path"),
    "dataset_config": Foreign(_TRL, "name", "it is 'name' of the data set, under 'data'"),
    "dataset_split": Foreign(_TRL, "split"),
    "dataset_train_split": Foreign(_TRL, "split"),
    "dataset_splits": Foreign(_HANDBOOK, "split"),
    "dataset_test_split": Foreign(_TRL, "eval_fraction"),
    "dataset_prepared_path": Foreign(_AX, "", "PREFOPT_CACHE says where caches go; leave it out"),
    "val_set_size": Foreign(_AX, "eval_fraction"),
    "val_size": Foreign(_LF, "eval_fraction"),
    "test_split_size": Foreign(_HANDBOOK, "eval_fraction"),
    "column_map": Foreign(_TT, "columns"),
    "prompt_key": Foreign(_OR, "columns", "write `columns: {prompt: NAME}`"),
    "chosen_key": Foreign(_OR, "columns", "write `columns: {chosen: NAME}`"),
    "rejected_key": Foreign(_OR, "columns", "write `columns: {rejected: NAME}`"),
    "field_chosen": Foreign(_AX, "columns", "write `columns: {chosen: NAME}`"),
    "field_rejected": Foreign(_AX, "columns", "write `columns: {rejected: NAME}`"),
    "field_messages": Foreign(_AX, "columns", "write `columns: {messages: NAME}`"),
    "fraction": Foreign(_TRL, "max_samples"),
    # lengths
    "max_seq_length": Foreign(_OLD_TRL, "max_length"),
    "max_seq_len": Foreign(_TT, "max_length"),
    "cutoff_len": Foreign(_LF, "max_length"),
    "sequence_len": Foreign(_AX, "max_length"),
    "max_len": Foreign(_OR, "max_length"),
    "max_prompt_length": Foreign(_OLD_TRL, "", _BOUNDS),
    "max_completion_length": Foreign(_TRL, "max_new_tokens", elsewhere=_NEVER_CUT),
    "max_target_length": Foreign(_OLD_TRL, "", _NEVER_CUT),
    "truncation_mode": Foreign(_OLD_TRL, "overlong"),
    "response_length": Foreign(_OLD_TRL, "max_new_tokens"),
    "packing": Foreign(_TRL, "", "rows are batched by length; leave it out"),
    "sample_packing": Foreign(_AX, "", "rows are batched by length; leave it out"),
    # DPO
    "pref_beta": Foreign(_LF, "beta"),
    "rl_beta": Foreign(_AX, "beta"),
    "dpo_beta": Foreign(_AX, "beta"),
    "reference_policy_kl_penalty": Foreign("NeMo RL", "beta"),
    "pref_loss": Foreign(_LF, "loss_type"),
    "dpo_loss_type": Foreign(_AX, "loss_type"),
    "ipo_enable": Foreign(_OR, "loss_type", "write `loss_type: ipo`"),
    "ref_model": Foreign(_LF, "init", "the reference is the stage that 'init' names; leave it out"),
    "ref_model_name_or_path": Foreign(_TRL, "init", "the reference is the stage that 'init' names; leave it out"),
    "dpo_label_smoothing": Foreign(_LF, "label_smoothing"),
    # reward models and PPO
    "reward_model": Foreign(_LF, "reward", _REWARD),
    "reward_model_path": Foreign(_OLD_TRL, "reward", _REWARD),
    "reward_pretrain": Foreign(_OR, "reward", _REWARD),
    "remote_rm_url": Foreign(_OR, "reward", "write `reward: {url: http://…}`"),
    "reward_funcs": Foreign(_TRL, "reward", _FUNCTIONS),
    "reward_weights": Foreign(_TRL, "reward", _WEIGHTED),
    "sft_model_path": Foreign(_OLD_TRL, "init", "a stage starts from another stage: `init: NAME`"),
    "critic_pretrain": Foreign(_OR, "value", _VALUE),
    "critic_learning_rate": Foreign(_OR, "value_learning_rate"),
    "value_model_path": Foreign(_OLD_TRL, "value", _VALUE),
    "prompt_data": Foreign(_OR, "prompts", "name it once under 'data', then `prompts: NAME` in the stage"),
    "query_dataset": Foreign(_OLD_TRL, "prompts", "name it once under 'data', then `prompts: NAME` in the stage"),
    "ppo_epochs": Foreign(_OLD_TRL, "num_ppo_epochs"),
    "num_episodes": Foreign(_OR, "total_episodes"),
    "mini_batch_size": Foreign(_OLD_TRL, "num_mini_batches", _MINIBATCHES),
    "ppo_buffer_size": Foreign(_LF, "rollout_batch_size"),
    "local_rollout_forward_batch_size": Foreign(_OLD_TRL, _PASSES),
    "micro_rollout_batch_size": Foreign(_OR, _PASSES),
    "num_sample_generations": Foreign(_OLD_TRL, "", "an evaluate stage samples; leave it out"),
    "n_samples_per_prompt": Foreign(_OR, "samples_per_prompt"),
    "num_generations": Foreign(_TRL, "samples_per_prompt"),
    "init_kl_coef": Foreign(_OLD_TRL, "coefficient", _KL),
    "kl_coef": Foreign(_TRL, "coefficient", _KL),
    "kl_coeff": Foreign(_TT, "coefficient", _KL),
    "kl_estimator": Foreign(_TRL, "estimator", _ESTIMATOR),
    "kl_penalty": Foreign(_OLD_TRL, "estimator", _ESTIMATOR),
    "kl_target": Foreign(_OR, "adaptive_target", _ADAPTIVE),
    "kl_horizon": Foreign(_OR, "horizon", _ADAPTIVE),
    "adap_kl_ctrl": Foreign(_OLD_TRL, "adaptive_target", _ADAPTIVE),
    "ppo_target": Foreign(_LF, "adaptive_target", _ADAPTIVE),
    "target_kl": Foreign(_OLD_TRL, "stop_above", _STOP_ABOVE),
    "early_stopping": Foreign(_OLD_TRL, "stop_above", _STOP_ABOVE),
    "clip_range": Foreign("stable-baselines3", "cliprange"),
    "epsilon": Foreign(_TRL, "cliprange"),
    "epsilon_high": Foreign(_TRL, "cliprange_high"),
    "generation_batch_size": Foreign(_TRL, "rollout_batch_size"),
    "steps_per_generation": Foreign(_TRL, "num_mini_batches", _MINIBATCHES),
    "eps_clip": Foreign(_OR, "cliprange"),
    "value_clip": Foreign(_OR, "cliprange_value"),
    "value_coeff": Foreign(_TT, "vf_coef"),
    "gae_lambda": Foreign("stable-baselines3", "lam"),
    "lambd": Foreign(_OR, "lam"),
    "lmbda": Foreign(_TT, "lam"),
    "normalize_reward": Foreign(_OR, "normalise", _NORMALISE),
    "use_score_scaling": Foreign(_OLD_TRL, "normalise", _NORMALISE),
    "use_score_norm": Foreign(_OLD_TRL, "normalise", _NORMALISE),
    "ppo_score_norm": Foreign(_LF, "normalise", _NORMALISE),
    "score_clip": Foreign(_OLD_TRL, "clip", _CLIP),
    "reward_clip_range": Foreign(_OR, "clip", _CLIP),
    "non_eos_penalty": Foreign(_OLD_TRL, "missing_eos_penalty"),
    "ppo_whiten_rewards": Foreign(_LF, "whiten_rewards"),
    "stop_token": Foreign(_TRL, "", "a completion ends with the model's EOS; leave it out"),
    "stop_token_id": Foreign(_TRL, "", "a completion ends with the model's EOS; leave it out"),
    "generate_max_len": Foreign(_OR, "max_new_tokens"),
    "max_generated_tokens": Foreign(_TT, "max_new_tokens"),
    "prompt_max_len": Foreign(_OR, "", _BOUNDS),
    "num_labels": Foreign(_HF, "", "a reward model has one score; leave it out"),
    "disable_dropout": Foreign(_TRL, "lora_dropout", "dropout is that of the adapter: 'lora_dropout', by default 0"),
    # training
    "micro_batch_size": Foreign(f"{_AX} and {_OR}", _PER_DEVICE),
    "micro_train_batch_size": Foreign(_OR, _PER_DEVICE),
    "batch_size": Foreign(_TT, _PER_DEVICE),
    "train_batch_size": Foreign(
        _OR, _PER_DEVICE, "pairs per step are per_device_train_batch_size × gradient_accumulation_steps × devices"
    ),
    "eval_batch_size": Foreign(_AX, "per_device_eval_batch_size"),
    "num_epochs": Foreign(_AX, "num_train_epochs"),
    "epochs": Foreign(_TT, "num_train_epochs"),
    "max_epochs": Foreign(_OR, "num_train_epochs"),
    "max_steps_per_epoch": Foreign(_TT, "max_steps"),
    "lr": Foreign(_TT, "learning_rate"),
    "actor_learning_rate": Foreign(_OR, "learning_rate"),
    "lr_scheduler": Foreign(f"{_AX} and {_TT}", "lr_scheduler_type"),
    "warmup_ratio": Foreign(_OLD_HF, "warmup_steps", "a value below 1 is a share of all steps: `warmup_steps: 0.1`"),
    "lr_warmup_ratio": Foreign(_OR, "warmup_steps", "a value below 1 is a share of all steps: `warmup_steps: 0.1`"),
    "num_warmup_steps": Foreign(_TT, "warmup_steps"),
    "max_norm": Foreign(_OR, "max_grad_norm"),
    "clip_grad_norm": Foreign(_TT, "max_grad_norm"),
    "optim": Foreign(_HF, "", _ADAMW),
    "optimizer": Foreign(_AX, "", _ADAMW),
    "gradient_checkpointing": Foreign(_OLD_HF, "activation_checkpointing"),
    "gradient_checkpointing_kwargs": Foreign(_OLD_HF, "activation_checkpointing"),
    "enable_activation_checkpointing": Foreign(_TT, "activation_checkpointing"),
    "disable_gradient_checkpointing": Foreign(_LF, "activation_checkpointing"),
    "evaluation_strategy": Foreign(_OLD_HF, "eval_steps", _EVAL_STEPS),
    "eval_strategy": Foreign(_HF, "eval_steps", _EVAL_STEPS),
    "do_eval": Foreign(_HF, "eval_steps", _EVAL_STEPS),
    "do_train": Foreign(_HF, "", "a stage in the recipe is run; leave it out"),
    "evals_per_epoch": Foreign(_AX, "eval_steps"),
    "saves_per_epoch": Foreign(_AX, "save_steps"),
    "save_strategy": Foreign(_HF, "save_steps", "checkpoints come every 'save_steps'"),
    "logging_strategy": Foreign(_HF, "logging_steps"),
    "logging_first_step": Foreign(_HF, "logging_steps"),
    "resume_from_checkpoint": Foreign(_HF, "", _RESUME),
    "auto_resume_from_checkpoints": Foreign(_AX, "", _RESUME),
    "deepspeed": Foreign(_HF, "", "not in this version"),
    "fsdp": Foreign(_HF, "", "not in this version"),
    # where things go
    "output_dir": Foreign(_HF, "", "artefacts go to runs/NAME; `prefopt run RECIPE --out DIR` changes that"),
    "overwrite_output_dir": Foreign(_OLD_HF, "", "finished stages are kept and reused; leave it out"),
    "overwrite_cache": Foreign(_LF, "", "caches are keyed by content; leave it out"),
    "run_name": Foreign(_HF, "name"),
    "report_to": Foreign(_HF, "tracking", _WANDB),
    "use_wandb": Foreign(_OR, "tracking", _WANDB),
    "wandb_project": Foreign(_AX, "project", _WANDB),
    "wandb_entity": Foreign(_AX, "entity", "write `tracking: {wandb: {entity: NAME}}`"),
    "wandb_mode": Foreign(_AX, "mode", "write `tracking: {wandb: {mode: offline}}`"),
    "metric_logger": Foreign(_TT, "tracking", _WANDB),
    "push_to_hub": Foreign(_HF, "", "nothing is uploaded; leave it out"),
    "hub_model_id": Foreign(_HF, "", "nothing is uploaded; leave it out"),
    "data_seed": Foreign(_HF, "seed"),
    "stage": Foreign(_LF, "kind", _KINDS),
    "rl": Foreign(_AX, "kind", _KINDS),
    "recipe": Foreign(_TT, "kind", _KINDS),
}  # fmt: skip

LATER_KEYS = frozenset(
    "ensemble calibrate axis base_url pref_ftx rpo_alpha "
    "sft_loss_weight nll_loss_coef simpo_gamma orpo_alpha loss_weights precompute_ref_log_probs reference_free".split()
)

KIND_ALIASES = {
    "pt": "pretrain",
    "pretraining": "pretrain",
    "rm": "reward",
    "reward_model": "reward",
    "reward_modeling": "reward",
    "rollout": "collect",
    "sample": "collect",
    "rlhf": "ppo",
    "finetune": "sft",
    "instruct": "sft",
    "rl": "ppo",
    "eval": "evaluate",
    "evaluation": "evaluate",
    "gkd": "distill",
    "sdft": "distill",
    "distillation": "distill",
    "context_distillation": "distill",
}
VALUE_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fa2": "flash_attention_2",
    "flash": "flash_attention_2",
    "flash_attention": "flash_attention_2",
    "keep_end": "trim_prompt",
    "keep_start": "drop",
    "chat_template.default": "messages",
    "sharegpt": "messages",
    "dpo": "sigmoid",
    "rdpo": "robust",
    "disable": "disabled",
}
