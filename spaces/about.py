"""The text of the tab "About"."""

from __future__ import annotations

import re
from pathlib import Path

from mobilevit_hub.cards import markdown_text
from mobilevit_hub.presets import find_preset

PAPERS = """## Papers

- Sachin Mehta, Mohammad Rastegari: *MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer*,
  ICLR 2022, arXiv 2110.02178
- Sachin Mehta, Mohammad Rastegari: *Separable Self-attention for Mobile Vision Transformers*, 2022, arXiv 2206.02680
- Ramprasaath Selvaraju and others: *Grad-CAM*, ICCV 2017, arXiv 1610.02391: the picture of what the network looks at
"""
READING = """## What you see

- **Milliseconds** are those of the network alone on this server, for one photo, without decoding and resizing it.
- **Differences** are between probabilities, in percentage points, to the first runtime shown. PyTorch, Keras and
  TFLite fp32 compute the same and differ by rounding; TFLite int8 has weights of 8 bits.
- **Your photo** stays on this server for an hour at most and is used for nothing else.

## Example photos

Cat: Stefan van der Walt, CC0. Coffee: Rachel Michetti, CC0. Pizza and school bus: COCO, CC BY 2.0.
"""


def about(name: str) -> str:
    """Facts, licence and card of a model, and the papers, in Markdown."""
    preset = find_preset(name)
    if preset is None:
        card = Path(name).expanduser() / "README.md"
        text = card.read_text("utf-8", "replace") if card.is_file() else f"# {markdown_text(Path(name).name)}\n"
        facts = _without_front_matter(text)
    else:
        score = "–" if preset.score is None else f"{preset.score:.1f} % top-1 on {preset.dataset}"
        rows = {
            "parameters": f"{preset.params / 1e6:.2f} million",
            "photo": f"{preset.resolution} × {preset.resolution} pixels",
            "multiply-accumulates": "–" if preset.macs is None else f"{preset.macs / 1e9:.2f} billion a photo",
            "score": f"{score} ({preset.score_source})",
            "classes": str(preset.num_labels),
            "channel order": preset.channel_order.upper(),
            "licence of the weights": preset.license.removeprefix("other: "),
        }
        table = "\n".join(f"| {key} | {markdown_text(value)} |" for key, value in rows.items())
        facts = f"# {preset.name}\n\n| | |\n|---|---|\n{table}\n"
    return f"{facts}\n{READING}\n{PAPERS}\nThe code of this page and of the models is under Apache-2.0.\n"


def _without_front_matter(text: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
