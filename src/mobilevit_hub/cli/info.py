"""The verb `info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..choices import FRAMEWORKS
from ..hub.presets import find_preset, get_preset
from .output import add_hub_options, add_verb, hub_options, preset_record, print_table

SETTINGS = ("size", "crop_size", "interpolation", "channel_order")


def add_to(verbs: Any) -> None:
    """Adds the verb to the command."""
    verb = add_verb(verbs, "info", info_command, "mobilevit-hub info mobilevitv2-1.0")
    verb.add_argument("name", help="alias, folder or Hub id")
    verb.add_argument("--download", action="store_true", help="fetch all its files and show what they say")
    verb.add_argument("--framework", choices=FRAMEWORKS, help="also open it in PyTorch or Keras, and say as what")
    add_hub_options(verb)


def info_command(arguments: argparse.Namespace) -> int:
    """Say everything about one checkpoint."""
    name = arguments.name
    preset = find_preset(name)
    is_folder = preset is None and Path(name).expanduser().is_dir()
    if preset is None and not is_folder and "/" not in name:
        get_preset(name)  # raises, with the nearest names
    record: dict[str, Any] = {"name": name} if preset is None else preset_record(preset)
    if preset is not None and "/" in name:
        own = "config.json" if name.lower().startswith("timm/") else "preprocessor_config.json"
        record["note"] = (
            f"loading {name!r} prepares images as the repository's own {own} says; loading {preset.name!r}, as this "
            "record says"
        )
    checkpoint = None
    if arguments.download or is_folder or preset is None or preset.folder:
        from ..files import sha256_of
        from ..hub.find import find_checkpoint
        from ..images.processor import processor_of
        from ..network.configuration import load_config

        checkpoint = find_checkpoint(name, **hub_options(arguments))
        config, processor = load_config(checkpoint), processor_of(checkpoint)
        record["files"] = {
            "labels": config.num_labels,
            **{name: getattr(processor.settings, name) for name in SETTINGS},
        }
        if arguments.download or is_folder or preset is not None:  # else the weights would have to be fetched
            weights = checkpoint.weights_file
            record["files"] = {"weights": str(weights), "sha256": sha256_of(weights), **record["files"]}
        record["differences"] = [] if preset is None else _differences(preset, checkpoint, processor)
    if arguments.framework:
        from ..models import from_pretrained, parameter_count

        network = from_pretrained(checkpoint or name, framework=arguments.framework, **hub_options(arguments))
        record["model"] = {"class": type(network).__name__, "params": parameter_count(network)}
    if arguments.json:
        print(json.dumps(record, indent=2))
        return 0
    rows = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += [[f"{key}.{k}", str(v)] for k, v in value.items()]
        elif value not in (None, []):
            rows.append([key, "; ".join(value) if isinstance(value, list) else str(value)])
    print_table(rows)
    return 0


def _differences(preset: Any, checkpoint: Any, used: Any) -> list[str]:
    """Where a checkpoint's own preprocessing file contradicts our record of it, and which of the two is used."""
    from ..images.preparing import fields_of_preset
    from ..images.processor import MobileViTImageProcessor, processor_from_dict

    if checkpoint.processor_data is None:
        return []
    own = processor_from_dict(checkpoint.processor_data, "preprocessor_config.json")
    record = MobileViTImageProcessor(**fields_of_preset(preset))
    rows = [(name, *(getattr(processor.settings, name) for processor in (own, record, used))) for name in SETTINGS]
    return [
        f"{name}: the file says {of_file}, our record {of_record}; {of_used} is used"
        for name, of_file, of_record, of_used in rows
        if of_file != of_record
    ]
