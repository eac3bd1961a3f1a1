"""`transformers.Trainer` with the papers' batches, decay groups, soft labels and weight average."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import EvalPrediction, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from ...data.labelled import LabelledImages
from ...images.processor import MobileViTImageProcessor
from ...recipes.recipe import Recipe, is_hidden_matrix
from ...recipes.transforms import SizedBatches, mix_batch, training_photo
from .muon import Muon

EMA_FILE = "ema.pt"


class TrainingImages(Dataset):
    """Training photos with the recipe's random transforms, as `(H, W, C)` bytes.

    Items are addressed by `(image size, index, seed)`, as `SizedBatches` yields them.
    """

    def __init__(self, images: LabelledImages, recipe: Recipe, channel_order: str, interpolation: str) -> None:
        self.images, self.recipe = images, recipe
        self.channel_order, self.interpolation = channel_order, interpolation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[np.ndarray, int, int]:
        pixels, label = training_photo(self.images, key, self.recipe, self.channel_order, self.interpolation)
        return pixels, label, key[2]


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


class RecipeTrainer(Trainer):
    """Trainer that follows a `Recipe`.

    Args:
        recipe: How to train.
        num_labels: Number of classes.
        seconds_before: Time that the run took before it was resumed.
        arguments: As for `transformers.Trainer`.
    """

    def __init__(self, recipe: Recipe, num_labels: int, seconds_before: float = 0, **arguments: Any) -> None:
        self.recipe, self.num_classes = recipe, num_labels
        self.started = time.time() - seconds_before
        super().__init__(**arguments)
        self.pop_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(_Progress())
        self.average: AveragedModel | None = None
        if recipe.ema_momentum:
            self.average = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(1 - recipe.ema_momentum), use_buffers=True
            )
            self.add_callback(_UpdateAverage(self))

    @property
    def seconds(self) -> int:
        """Time spent on the run, also before it was resumed."""
        return round(time.time() - self.started)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the time to each record."""
        super().log({**logs, "seconds": self.seconds}, start_time)

    def get_train_dataloader(self) -> DataLoader:
        """Batches in the recipe's sizes, each process its own."""
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

    def _collate(self, items: list[tuple[np.ndarray, int, int]]) -> dict[str, Tensor]:
        pixel_values = to_pixel_values([pixels for pixels, _, _ in items])
        labels = np.asarray([label for _, label, _ in items])
        if not (self.recipe.mixup or self.recipe.cutmix):
            return {"pixel_values": pixel_values, "labels": torch.from_numpy(labels)}
        rng = random.Random(sum(seed for _, _, seed in items))  # noqa: S311
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
            muon = recipe.muon_learning_rate > 0 and is_hidden_matrix(name, parameter.shape)
            decays = parameter.dim() > 1 or recipe.decay_all
            group = {
                "params": [],
                "muon": muon,
                "lr": recipe.muon_learning_rate if muon else recipe.learning_rate,
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
            groups.setdefault((muon, decays), group)["params"].append(parameter)
        parameters = list(groups.values())
        self.optimizer = Muon(parameters) if recipe.muon_learning_rate else torch.optim.AdamW(parameters, fused=True)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy on class indices or probabilities; label smoothing in training only."""
        if self.recipe.freeze_backbone:
            # After Trainer's model.train(): else the norms would follow the new photos.
            self.model.base_model.eval()
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
        self.take_average()
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def take_average(self) -> None:
        """Gives the model the weight average, where there is one."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Measures top-1 and top-5 on the validation photos, with the average where there is one."""
        # A resumed run does not repeat earlier evaluations, so they must not use up random numbers.
        with torch.random.fork_rng(devices=[]), self.averaged_weights():
            if dist.is_initialized():  # each process has norm statistics of its own; those of the first are saved
                for buffer in self.model.buffers():
                    dist.broadcast(buffer, 0)
            return super().evaluate(*arguments, **options)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.average is not None and self.args.should_save:  # one process of a distributed run writes
            torch.save(self.average.state_dict(), Path(output_dir or self.args.output_dir) / EMA_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            saved = torch.load(Path(resume_from_checkpoint) / EMA_FILE, weights_only=True, map_location="cpu")
            self.average.load_state_dict(saved)


class _UpdateAverage(TrainerCallback):
    """Keeps the weight average in step with the optimiser."""

    def __init__(self, trainer: RecipeTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.average.update_parameters(self.trainer.model)  # type: ignore[union-attr]


class _Progress(ProgressCallback):
    """Bars and scores on stderr; transformers prints every record to stdout, where the result goes."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        super().on_train_begin(args, state, control, **options)
        if state.global_step:
            tqdm.write(f"continuing at step {state.global_step:,} of {state.max_steps:,}", file=sys.stderr)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")
        if "eval_top1" in logs:
            top1, top5 = 100 * logs["eval_top1"], 100 * logs["eval_top5"]
            tqdm.write(f"epoch {logs['epoch']:.0f}: top-1 {top1:.2f} %, top-5 {top5:.2f} %", file=sys.stderr)


def five_best(logits: Any, labels: Any) -> Tensor:
    """Indices of the five best classes, `(B, 5)`: all that the scores need of the logits."""
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    return logits.topk(min(5, logits.shape[-1]), dim=-1).indices


def top_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 and top-5 as fractions, from what `five_best` left."""
    hits = np.asarray(prediction.predictions) == np.asarray(prediction.label_ids)[:, None]
    return {"top1": float(hits[:, 0].mean()), "top5": float(hits.any(axis=1).mean())}
