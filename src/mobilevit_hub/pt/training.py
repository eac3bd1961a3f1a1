"""Training on `transformers.Trainer`: from scratch or from a checkpoint, resumable, one or many devices."""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from .. import runtimes
from ..configuration import CONFIG_CLASSES
from ..data import LabelledImages, SizedBatches, mix_batch, open_images, rand_augment, random_resized_crop
from ..errors import InputError, require
from ..image_processing import MobileViTImageProcessor, processor_for
from ..recipes import Recipe, get_recipe
from ..reports import draw_learning_curve, training_card, write_json
from .muon import Muon, is_hidden_matrix

EMA_FILE = "ema.pt"


class TrainingImages(Dataset):
    """Training photos with the recipe's random transforms, as `(H, W, C)` bytes.

    Items are addressed by `(image size, index)`, as `SizedBatches` yields them.
    """

    def __init__(self, images: LabelledImages, recipe: Recipe, channel_order: str, interpolation: str) -> None:
        self.images, self.recipe = images, recipe
        self.channel_order, self.interpolation = channel_order, interpolation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, int]:
        size, index = key
        # torch seeds every worker and every epoch differently, and restores the state on resuming.
        rng = random.Random(int(torch.randint(2**62, ()).item()))  # noqa: S311 - augmentation, not secrets
        photo = random_resized_crop(
            self.images[index], size, rng, (self.recipe.crop_area, 1.0), interpolation=self.interpolation
        )
        if self.recipe.rand_augment:
            photo = rand_augment(photo, rng, self.recipe.rand_augment)
        pixels = np.asarray(photo)
        if self.recipe.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.channel_order == "bgr":
            pixels = pixels[:, :, ::-1]
        return pixels, int(self.images.labels[index])


class EvaluationImages(Dataset):
    """Validation photos through the checkpoint's own image processor."""

    def __init__(self, images: LabelledImages, processor: MobileViTImageProcessor) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.processor(self.images[index], return_tensors="np")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": int(self.images.labels[index])}


def to_pixel_values(pixels: list[np.ndarray]) -> Tensor:
    """Stacks `(H, W, C)` bytes into `(B, C, H, W)` floats in [0, 1], channels-last in memory."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(255)


class _Trainer(Trainer):
    """Trainer with the papers' batches, decay groups, soft labels and weight average."""

    def __init__(self, recipe: Recipe, num_labels: int, **arguments: Any) -> None:
        self.recipe, self.num_classes = recipe, num_labels
        super().__init__(**arguments)
        self.average: AveragedModel | None = None
        if recipe.ema_momentum:
            self.average = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(1 - recipe.ema_momentum), use_buffers=True
            )
            self.add_callback(_UpdateAverage(self))

    def get_train_dataloader(self) -> DataLoader:
        batches = SizedBatches(
            len(self.train_dataset), self.args.per_device_train_batch_size, self.recipe.sizes, self.recipe.seed
        )
        loader: DataLoader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
        )
        return self.accelerator.prepare(loader)

    def _collate(self, items: list[tuple[np.ndarray, int]]) -> dict[str, Tensor]:
        pixel_values = to_pixel_values([pixels for pixels, _ in items])
        labels = np.asarray([label for _, label in items])
        if not (self.recipe.mixup or self.recipe.cutmix):
            return {"pixel_values": pixel_values, "labels": torch.from_numpy(labels)}
        rng = random.Random(int(torch.randint(2**62, ()).item()))  # noqa: S311
        mixed, targets = mix_batch(
            pixel_values.numpy(), labels, self.num_classes, rng, self.recipe.mixup, self.recipe.cutmix
        )
        return {"pixel_values": torch.from_numpy(mixed), "labels": torch.from_numpy(targets)}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or Muon with AdamW.

        Norms and biases (parameters of one dimension) are not decayed unless the recipe says so.
        """
        recipe = self.recipe
        groups: dict[tuple[bool, bool], dict[str, Any]] = {}
        for name, parameter in (model or self.model).named_parameters():
            if not parameter.requires_grad:
                continue
            muon = recipe.muon_learning_rate > 0 and is_hidden_matrix(name, parameter)
            decays = parameter.dim() > 1 or recipe.decay_all
            group = {
                "params": [],
                "muon": muon,
                "lr": recipe.muon_learning_rate if muon else recipe.learning_rate,
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
            groups.setdefault((muon, decays), group)["params"].append(parameter)
        kind = Muon if recipe.muon_learning_rate else torch.optim.AdamW
        self.optimizer = kind(list(groups.values()))
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy on class indices or probabilities; label smoothing in training only."""
        outputs = model(inputs["pixel_values"], return_dict=True)
        smoothing = self.recipe.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(outputs.logits.float(), inputs["labels"], label_smoothing=smoothing)
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Runs its body with the weight average in place of the weights, where there is an average."""
        if self.average is None:
            yield
            return
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Measures top-1 and top-5 on the validation photos, with the average where there is one."""
        with self.averaged_weights():
            return super().evaluate(*arguments, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = Path(resume_from_checkpoint) / EMA_FILE
        if self.average is not None and saved.exists():
            self.average.load_state_dict(torch.load(saved, weights_only=True, map_location="cpu"))


class _UpdateAverage(TrainerCallback):
    """Keeps the weight average in step with the optimiser and beside every checkpoint."""

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.average.update_parameters(self.trainer.model)  # type: ignore[union-attr]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(self.trainer.average.state_dict(), folder / EMA_FILE)  # type: ignore[union-attr]


def _five_best(logits: Any, labels: Any) -> Tensor:
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    return logits.topk(min(5, logits.shape[-1]), dim=-1).indices


def _top_scores(prediction: EvalPrediction) -> dict[str, float]:
    hits = np.asarray(prediction.predictions) == np.asarray(prediction.label_ids)[:, None]
    return {"top1": float(hits[:, 0].mean()), "top5": float(hits.any(axis=1).mean())}


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (`trainer_state.json` is written last)."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def train(
    data: str | Path,
    output: str | Path,
    *,
    model: str = "mobilevit-xxs",
    from_scratch: bool = False,
    recipe: Recipe | None = None,
    validation: str | Path | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    workers: int = 0,
    save_steps: int = 500,
    progress: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Trains a classifier and writes it as a folder that every `from_pretrained` opens.

    Args:
        data: Labelled photos: folder of class folders, parquet, or Hub id (see `data.open_images`).
        output: Folder to write: weights, config, processor, card, `training_log.json`,
            `learning_curve.png`; `checkpoints/` below it is what `resume` continues from.
        model: Checkpoint to start from, or whose architecture to use.
        from_scratch: Start from random weights instead of the checkpoint's.
        recipe: How to train; default: the `"finetune"` recipe.
        validation: Labelled photos to evaluate on; default: the validation split of `data`.
        config: Config fields to change, e.g. `{"output_stride": 16}`.
        resume: Continue the last complete checkpoint of `output`.
        workers: Processes that prepare photos; 0 is best when the decoded photos fit into memory.
        save_steps: Steps between two checkpoints.
        progress: Whether to show progress bars.
        command: The command line, for the card.

    Returns:
        The content of `training_log.json`: settings, history, `top1`, `top5`, `count`, seconds.
    """
    for package in ("datasets", "accelerate"):
        require(package, "train", "Training")
    recipe, output, started = recipe or get_recipe(), Path(output), time.time()
    checkpoints = output / "checkpoints"
    last = last_complete_checkpoint(checkpoints) if resume else None
    if not resume and checkpoints.exists() and any(checkpoints.iterdir()):
        raise InputError(
            f"{checkpoints} holds an earlier run; continue it with --resume or choose another output folder.",
            path=checkpoints,
        )
    progress = progress and os.environ.get("LOCAL_RANK", "0") == "0"
    images = open_images(data, "train")
    held_out = open_images(validation or data, "validation")
    if held_out.label_names != images.label_names:
        raise InputError(
            f"Training and validation photos have different classes: {images.label_names[:3]}… and "
            f"{held_out.label_names[:3]}….",
            field="validation",
        )
    torch.manual_seed(recipe.seed)
    network, start_processor = _build(model, from_scratch, images.label_names, recipe, config or {})
    resize, crop = recipe.eval_sizes
    processor = processor_for(resize, crop, start_processor["interpolation"], start_processor["channel_order"])
    network.config.image_size = crop
    for photos in (images, held_out):
        photos.keep_in_memory(progress)

    accelerated = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` and `torchrun` set it
    steps_per_epoch = max(1, len(SizedBatches(len(images), recipe.batch_size, recipe.sizes)) // processes)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
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
        save_steps=save_steps,
        save_total_limit=2,
        logging_steps=max(1, min(50, steps_per_epoch)),
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=recipe.seed,
        disable_tqdm=not progress,
        ddp_find_unused_parameters=False,
        report_to=[],
    )
    trainer = _Trainer(
        recipe,
        len(images.label_names),
        model=network,
        args=arguments,
        train_dataset=TrainingImages(
            images, recipe, start_processor["channel_order"], start_processor["interpolation"]
        ),
        eval_dataset=EvaluationImages(held_out, processor),
        compute_metrics=_top_scores,
        preprocess_logits_for_metrics=_five_best,
    )
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    scores = trainer.evaluate()
    log = {
        "model": model,
        "from_scratch": from_scratch,
        "data": Path(str(data)).name,
        "count": len(held_out),
        "train_count": len(images),
        "top1": scores["eval_top1"],
        "top5": scores["eval_top5"],
        "recipe": asdict(recipe),
        "config": config or {},
        "command": command,
        "seconds": round(time.time() - started),
        "steps": trainer.state.global_step,
        "machine": _machine(accelerated, processes),
        "history": trainer.state.log_history,
    }
    if trainer.is_world_process_zero():
        with trainer.averaged_weights():
            network.eval().to(memory_format=torch.contiguous_format)
            network.save_pretrained(output, processor=processor, card=training_card(log, network.config))
        write_json(output / "training_log.json", log)
        draw_learning_curve(log["history"], output / "learning_curve.png")
    return log


def _build(
    model: str, from_scratch: bool, label_names: list[str], recipe: Recipe, changes: dict[str, Any]
) -> tuple[Any, dict[str, str]]:
    """The network to train, and interpolation and channel order of its images."""
    labels = dict(enumerate(label_names))
    if recipe.dropout >= 0:
        changes = {"hidden_dropout_prob": recipe.dropout, "classifier_dropout_prob": recipe.dropout, **changes}
    if from_scratch:
        from ..presets import get_preset

        preset = get_preset(model)
        config = CONFIG_CLASSES[preset.model_type].from_preset(model, id2label=labels, **changes)  # type: ignore[attr-defined]
        network = runtimes.model_class(config.model_type)(config)
        # A network from scratch takes photos as they are: nothing to inherit from OpenCV's BGR.
        look = {"interpolation": preset.interpolation, "channel_order": "rgb"}
    else:
        network = runtimes.from_pretrained(model, id2label=labels, **changes)
        processor = runtimes.image_processor(model)
        look = {"interpolation": processor.interpolation, "channel_order": processor.channel_order}
    if recipe.freeze_backbone:
        network.base_model.requires_grad_(False)
    return network.to(memory_format=torch.channels_last).train(), look


def _machine(accelerated: bool, processes: int) -> str:
    if accelerated:
        return f"{processes} × {torch.cuda.get_device_name()}"
    return f"{processes} × {torch.get_num_threads()} CPU threads ({platform.machine()})"
