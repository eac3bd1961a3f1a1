# %% [markdown]
# # Fine-tune MobileViT in Keras
#
# From a folder of photos, one sub-folder per class, to a fine-tuned model on disk:
#
# ```console
# $ python examples/finetune_keras.py photos/ my-model
# ```
#
# Needs `pip install "mobilevit_hub[tf,train]"`. This page and its notebook are made from the same script.

# %%
import sys

import keras

import mobilevit_hub as mh
from mobilevit_hub.tf import image_dataset

data, output = "photos", "my-model"
if "__file__" in globals():  # a script, not the notebook
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} PHOTOS OUTPUT")
    data, output = sys.argv[1:]
checkpoint = "mobilevit-xxs-tiny-imagenet"  # in the package; with a network also "mobilevit-s", "mobilevitv2-1.0", …

# %% [markdown]
# ## Photos
#
# Random crops and flips for training, the checkpoint's own resize and crop for validation, and for both the channel
# order that its weights expect. Where `data` has no `validation/` folder, a tenth of each class is held out.

# %%
processor = mh.image_processor(checkpoint)
photos = image_dataset(data, processor, batch_size=32)
validation = image_dataset(data, processor, split="validation", batch_size=64)
print(f"{len(photos)} batches of {', '.join(photos.class_names)}")

# %% [markdown]
# ## The classifier first
#
# Every weight but the new classifier is loaded, and stays as it is while the classifier learns.


# %%
def compile_with(learning_rate: float) -> None:
    """Sets the optimiser; Keras needs it again after each change of what is frozen."""
    model.compile(
        keras.optimizers.AdamW(learning_rate, weight_decay=0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


model = mh.from_pretrained(checkpoint, framework="tf", id2label=dict(enumerate(photos.class_names)))
model.backbone.trainable = False
compile_with(3e-3)
model.fit(photos, shuffle=False, validation_data=validation, epochs=3)

# %% [markdown]
# ## Then all weights
#
# With the norms frozen: their statistics come from many more photos than ours.

# %%
model.backbone.trainable = True
model.freeze_norms()
epochs = 15
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, epochs * len(photos), warmup_target=1e-3, warmup_steps=len(photos)
)
compile_with(schedule)
best = keras.callbacks.EarlyStopping("val_accuracy", patience=5, restore_best_weights=True, verbose=1)
model.fit(photos, shuffle=False, validation_data=validation, epochs=epochs, callbacks=[best])

# %% [markdown]
# ## Save, and use it
#
# The folder opens in Keras, PyTorch and stock transformers, and in `mobilevit-hub predict photo.jpg --model my-model`.

# %%
loss, accuracy = model.evaluate(validation, verbose=0)
print(f"{100 * accuracy:.1f} % of the validation photos are right")
model.save_pretrained(output, processor=processor)
print(f"saved to {output}")
