"""Training in PyTorch: `transformers.Trainer` on one or many devices, resumable."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
from transformers import TrainingArguments

from ...recipes.run import Run, last_complete_checkpoint
from .trainer import EvaluationImages, RecipeTrainer, TrainingImages, five_best, top_scores


def fit(run: Run) -> tuple[Any, dict[str, Any]]:
    """Trains the network of a run.

    Args:
        run: Recipe, photos and starting network.

    Returns:
        The trained network, with the weight average where there is one, None in all processes but one; and
        scores, `steps`, `seconds`, `machine` and `history` for the log.
    """
    recipe = run.recipe
    last, state = last_complete_checkpoint(run.checkpoints) if run.resume else (None, {})
    if run.resume and last is None:
        run.warn_of_no_checkpoint()
    torch.manual_seed(recipe.seed)
    network = run.build().to(memory_format=torch.channels_last).train()
    if recipe.freeze_backbone:
        network.base_model.requires_grad_(False)
    accelerated = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` and `torchrun` set it
    steps_per_epoch = run.steps_per_epoch(processes)
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        num_train_epochs=len(recipe.sizes),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=max(64, recipe.batch_size),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_learning_rate / recipe.learning_rate},
        warmup_steps=round(recipe.warmup_epochs * steps_per_epoch),
        max_grad_norm=recipe.clip_norm,
        bf16=recipe.bf16,
        use_cpu=not accelerated,
        eval_strategy="epoch",
        save_strategy="steps",
        # Small data: about once an epoch, or a short run would have nothing to resume from.
        save_steps=min(run.save_steps, max(20, steps_per_epoch)),
        save_total_limit=2,
        logging_steps=max(1, min(50, steps_per_epoch)),
        dataloader_num_workers=run.workers,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=recipe.seed,
        disable_tqdm=not run.progress,
        ddp_find_unused_parameters=False,
        report_to=[],
    )
    trainer = RecipeTrainer(
        recipe,
        len(run.images.label_names),
        seconds_before=(state.get("log_history") or [{}])[-1].get("seconds", 0),
        model=network,
        args=arguments,
        train_dataset=TrainingImages(run.images, recipe, run.processor.channel_order, run.processor.interpolation),
        eval_dataset=EvaluationImages(run.held_out, run.processor),
        compute_metrics=top_scores,
        preprocess_logits_for_metrics=five_best,
    )
    # Not earlier: by now every process of a distributed run has looked into the folder.
    if run.is_main_process and last is None:
        run.start()
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    scores = trainer.evaluate()
    results = {
        "top1": scores["eval_top1"],
        "top5": scores["eval_top5"],
        "seconds": trainer.seconds,
        "steps": trainer.state.global_step,
        "machine": _machine(accelerated, processes),
        "history": trainer.state.log_history,
    }
    if not run.is_main_process:
        return None, results
    trainer.take_average()
    return network.eval().to(memory_format=torch.contiguous_format), results


def _machine(accelerated: bool, processes: int) -> str:
    if accelerated:
        return f"{processes} × {torch.cuda.get_device_name()}"
    return f"{processes} × {torch.get_num_threads()} CPU threads ({platform.machine()})"
