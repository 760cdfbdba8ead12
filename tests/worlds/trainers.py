"""The selective trainer on a tiny pair, which records what it was given and what it kept, alone or over ranks."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tiny_pair import byte_tokenizer
from transformers import AutoModelForCausalLM
from trl import DistillationConfig

from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.selectors import Selection
from teachdiag.selectors.weighting import Weights

PROMPTS = [f"What is {a} + {a % 7}?" + "!" * (a % 5) for a in range(8)]
ENDS = [256]
_KEYS = ("context_id", "position", "token_id")


class Recording(SelectiveDistillationTrainer):
    """Keeps what was weighed, batch by batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[dict[str, Any]] = []
        self.columns: list[dict[str, np.ndarray]] = []
        self.weights: list[Weights] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches.append(super()._generate_and_score_completions(inputs))
        return self.batches[-1]

    def _weighed(self, columns: dict[str, np.ndarray]) -> Weights:
        self.columns.append(columns)
        self.weights.append(super()._weighed(columns))
        return self.weights[-1]


_TRLS = ("max_steps", "beta", "max_grad_norm", "bf16", "per_device_train_batch_size", "gradient_accumulation_steps")
WHOLE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}  # one micro-batch a step


def make_trainer(models: tuple[str, str], folder: Path, kind: type, **own: Any) -> Any:
    """Make a trainer of 8 prompts a step, over however many ranks."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4 // ranks,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "max_completion_length": 10,
        "learning_rate": 1e-3,
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args |= {name: own.pop(name) for name in _TRLS if name in own}
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in models)
    return kind(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(**args),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=byte_tokenizer(),
        **own,
    )


def train_and_write(models: tuple[str, str], folder: Path) -> None:
    """Take two steps at a fifth of the positions; rank 0 writes which were kept, and the weights."""
    selection = Selection("learnable", budget=0.2)
    trainer = make_trainer(models, folder, Recording, selection=selection, max_steps=2)
    trainer.train()
    if trainer.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        kept = [
            [[int(c), int(p), int(t)] for c, p, t in zip(*(own[n][w.kept] for n in _KEYS), strict=True)]
            for own, w in zip(trainer.columns, trainer.weights, strict=True)
        ]
        (folder / "kept.json").write_text(json.dumps(kept))
        weights = {
            name: own.detach().clone()
            for name, own in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        }
        torch.save(weights, folder / "weights.pt")
