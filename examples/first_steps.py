# %% [markdown]
# # First steps
#
# Classify a photo, compare PyTorch and Keras, and write a file for the phone:
#
# ```console
# $ python examples/first_steps.py
# ```
#
# Needs `pip install "mobilevit_hub[torch,export]"` and no network. This page and its notebook are made from the same
# script.

# %%
import sys
from pathlib import Path

import numpy as np

import mobilevit_hub as mh

photos = Path("photos")
if "__file__" in globals():  # a script, not the notebook
    photos = Path(__file__).parent / "photos"
name = "mobilevit-xxs-tiny-imagenet"  # in the package; with a network also "mobilevit-s", "mobilevitv2-1.0", …
output = Path(sys.argv[1] if "__file__" in globals() and len(sys.argv) > 1 else "xxs.tflite")

# %% [markdown]
# ## Classify

# %%
files = sorted(photos.glob("*.jpg"))
for result in mh.predict(files, name, top_k=3):
    print(Path(result["path"]).name)
    for prediction in result["predictions"]:
        print(f"  {100 * prediction['score']:5.1f} %  {prediction['label']}")

# %% [markdown]
# The checkpoint is small on purpose: 96 pixels, 200 classes. It does not know every cat.
#
# ## One checkpoint, two frameworks
#
# The processor belongs to the checkpoint: it knows resize, crop and channel order. PyTorch takes `(B, 3, H, W)`, Keras
# `(B, H, W, 3)`.

# %%
processor = mh.image_processor(name)
images = processor(files, return_tensors="pt")
in_pytorch = mh.from_pretrained(name)(**images).logits.detach().numpy()
in_keras = mh.from_pretrained(name, framework="tf").predict(
    np.moveaxis(images["pixel_values"].numpy(), 1, -1), verbose=0
)
print(f"logits up to {np.abs(in_pytorch).max():.1f}, which differ by {np.abs(in_pytorch - in_keras).max():.0e} at most")

# %% [markdown]
# ## To the phone
#
# The file takes the bytes of a photo; scaling and channel order are inside. It is compared with its source before it is
# written.

# %%
export = mh.conversion.export_tflite(name, output, precision="int8-dynamic", overwrite=True)
print(f"{export.path}: {export.inspection.size / 1e6:.1f} MB, {export.share_of_fp32:.0%} of the float32 file")

on_phone = mh.tflite.Model(output)
for file in files:
    print(f"{file.name}: {on_phone(file, top_k=1)[0]['label']}")

# %% [markdown]
# Next: fine-tune on photos of your own, [in Keras](finetune_keras.ipynb) or [in PyTorch](finetune_pytorch.ipynb).
