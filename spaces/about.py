"""The text of the tab "About"."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import ModelCard

from mobilevit_hub.hub.find import PACKAGE
from mobilevit_hub.hub.presets import Preset, find_preset
from mobilevit_hub.publishing.cards import markdown_text

PAPERS = """## Papers

- Sachin Mehta, Mohammad Rastegari: *MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer*,
  ICLR 2022, arXiv 2110.02178
- Sachin Mehta, Mohammad Rastegari: *Separable Self-attention for Mobile Vision Transformers*, 2022, arXiv 2206.02680
- Ramprasaath Selvaraju and others: *Grad-CAM*, ICCV 2017, arXiv 1610.02391: the picture of what the network looks at
"""
READING = """## What you see

- **Milliseconds** are those of the network alone on this server, for one photo, without decoding and resizing it;
  each runtime may use the same number of processors.
- **Differences** are between probabilities, in percentage points, to the first runtime shown. PyTorch, Keras and
  TFLite fp32 compute the same and differ by rounding; TFLite int8 has weights of 8 bits.
- **Your photo** stays on this server for an hour at most and is used for nothing else.
"""
README = Path(__file__).with_name("README.md")


def about(name: str) -> str:
    """Facts, licence and card of a model, and the papers, in Markdown."""
    preset = find_preset(name)
    file = (Path(name).expanduser() if preset is None else PACKAGE / (preset.folder or name)) / "README.md"
    card = ModelCard(file.read_text("utf-8", "replace"), ignore_metadata_errors=True) if file.is_file() else None
    # its pictures lie beside it, where no visitor gets, or on another host, which would see who visits
    text = re.sub(r"!\[.*?\]\(.*?\)|<img\b[^>]*>", "", card.text if card else "")
    licences = README.read_text("utf-8").partition("## Licences\n")[2]
    facts = _heading(name, card) if preset is None else _facts(preset)
    return f"{facts}\n{READING}\n{text}\n{PAPERS}\n## Licences\n{licences}"


def _heading(name: str, card: ModelCard | None) -> str:
    """The name of a user's model, and its licence or where its card is."""
    lines = [f"# {markdown_text(Path(name).name)}"]
    licence = card.data.to_dict().get("license") if card else None
    if licence:
        lines.append(f"Licence: {markdown_text(str(licence))}")
    elif not Path(name).expanduser().exists():
        lines.append(f"[Its card, with the licence, on the Hub](https://huggingface.co/{quote(name)})")
    return "\n\n".join(lines) + "\n"


def _facts(preset: Preset) -> str:
    """The record of a published checkpoint, as a table."""
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
    if preset.hub_id:
        table += f"\n| card | <https://huggingface.co/{preset.hub_id}> |"
    return f"# {preset.name}\n\n| | |\n|---|---|\n{table}\n"
