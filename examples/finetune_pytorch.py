# %% [markdown]
# # Fine-tune MobileViT in PyTorch
#
# From a folder of photos, one sub-folder per class, to a fine-tuned model on disk, in a loop of your own:
#
# ```console
# $ python examples/finetune_pytorch.py photos/ my-model
# ```
#
# Needs `pip install "mobilevit_hub[torch,train]"`. This page and its notebook are made from the same script. The
# command `mobilevit-hub train` does more: other recipes, several GPUs, and it goes on after a kill.

# %%
import random
import sys

import torch
from PIL import ImageOps

import mobilevit_hub as mh
from mobilevit_hub.data import open_split
from mobilevit_hub.recipes.transforms import random_resized_crop

data, output = "photos", "my-model"
if "__file__" in globals():  # a script, not the notebook
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} PHOTOS OUTPUT")
    data, output = sys.argv[1:]
checkpoint = "mobilevit-xxs-tiny-imagenet"  # in the package; with a network also "mobilevit-s", "mobilevitv2-1.0", …
torch.manual_seed(0)

# %% [markdown]
# ## Photos
#
# `photos[i]` is an upright RGB photo, `photos.labels[i]` its class. Where `data` has no `validation/` folder, a tenth
# of each class is held out. The processor resizes and crops as the checkpoint was evaluated, and knows the channel
# order that its weights expect; for training it gets random crops, half of them mirrored.

# %%
photos, validation = (open_split(data, split) for split in ("train", "validation"))
processor = mh.image_processor(checkpoint)
size, rng = processor.crop_size["height"], random.Random(0)  # noqa: S311
print(f"{len(photos)} photos of {', '.join(photos.label_names)}")


def training_batch(indices: list[int]) -> torch.Tensor:
    """Random crops of photos, `(B, 3, H, W)`."""
    crops = [random_resized_crop(photos[i], size, rng, area=(0.25, 1.0)) for i in indices]
    crops = [ImageOps.mirror(crop) if rng.random() < 0.5 else crop for crop in crops]
    return processor(crops, return_tensors="pt", do_resize=False)["pixel_values"]


# %% [markdown]
# ## The network
#
# Every weight but the new classifier is loaded. The norms keep the statistics of the many photos that they were trained
# on; ours are few.

# %%
model = mh.from_pretrained(checkpoint, id2label=dict(enumerate(photos.label_names)))
classifier = list(model.classifier.parameters())
others = list(model.base_model.parameters())


def train_for(epochs: int, learning_rate: float, parameters: list[torch.nn.Parameter]) -> None:
    """Trains some of the parameters, and says how good the network is after each epoch."""
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, epochs=epochs, steps_per_epoch=-(-len(photos) // 32)
    )
    for epoch in range(epochs):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        for batch in torch.randperm(len(photos)).split(32):
            labels = torch.from_numpy(photos.labels)[batch]
            loss = model(training_batch(batch.tolist()), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.2f}, {100 * accuracy():.1f} % right")


@torch.inference_mode()
def accuracy() -> float:
    """The share of the validation photos that the network names right."""
    model.eval()
    best = [
        model(**processor([validation[int(i)] for i in batch], return_tensors="pt")).logits.argmax(1)
        for batch in torch.arange(len(validation)).split(64)
    ]
    return (torch.cat(best).numpy() == validation.labels).mean().item()


# %% [markdown]
# ## The classifier first, then all weights

# %%
train_for(3, 3e-3, classifier)
train_for(8, 1e-3, classifier + others)

# %% [markdown]
# ## Save, and use it
#
# The folder opens in PyTorch, Keras and stock transformers, and in `mobilevit-hub predict photo.jpg --model my-model`.

# %%
print(f"{100 * accuracy():.1f} % of the validation photos are right")
model.save_pretrained(output, processor=processor)
print(f"saved to {output}")
