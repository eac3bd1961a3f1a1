"""The verb `evaluate`: its arguments, and how its results are printed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..choices import RUNTIMES
from ..hub.presets import check_name
from .output import add_hub_options, add_verb, add_workers, hub_options, options_of, plain_text, shows_progress

EXAMPLES = """mobilevit-hub evaluate my-model photos/             # photos/cat/1.jpg …
  mobilevit-hub evaluate my-model my-model.tflite photos/ --output report
  mobilevit-hub evaluate mobilevit-s imagenet-1k          # from the Hub, after "hf auth login"
  mobilevit-hub evaluate mobilevit-s imagenet-v2:imagenetv2-matched-frequency-format-val/
  mobilevit-hub evaluate mobilevit-s imagenet-real:val/ --real-labels real.json
  accelerate launch --num_processes 2 -m mobilevit_hub.cli evaluate mobilevit-s imagenet-1k:val/ --output out
  mobilevit-hub evaluate mobilevit-s imagenet-1k:val/ --output out --resume"""


OPTIONS = (
    *("runtime", "split", "streaming", "real_labels", "limit", "batch_size", "workers", "strict"),
    *("output", "resume", "overwrite", "model_index"),
)


def add_to(verbs: Any) -> None:
    """Adds the verb to the command."""
    verb = add_verb(verbs, "evaluate", evaluate_command, EXAMPLES)
    verb.add_argument("names", nargs="+", metavar="NAME", help="alias, folder, Hub id or .tflite file; several compare")
    verb.add_argument(
        "data",
        metavar="DATA",
        help="folder of class folders, parquet files or Hub id; or imagenet-1k, imagenet-real, imagenet-v2, "
        "imagenet-a, imagenet-r, imagenet-sketch, of which a copy here is imagenet-1k:PATH",
    )
    verb.add_argument("--runtime", choices=RUNTIMES, help="what runs checkpoints (default: pt; tflite exports first)")
    verb.add_argument("--split", help="split of the data (default: validation)")
    verb.add_argument(
        "--streaming",
        action=argparse.BooleanOptionalAction,
        help="read from the Hub without storing (default: only benchmarks)",
    )
    verb.add_argument("--real-labels", metavar="FILE", help="the published real.json, for imagenet-real")
    verb.add_argument(
        "--limit", type=int, metavar="N", help="take N photos, evenly over the data; of a stream the first ones"
    )
    verb.add_argument("--batch-size", type=int, default=32, metavar="N", help="photos at a time (default: %(default)s)")
    verb.add_argument("--strict", action="store_true", help="stop at the first photo that cannot be read")
    verb.add_argument(
        "--output", metavar="FOLDER", help="write JSON, Markdown, a table of classes, plots, and what --resume needs"
    )
    verb.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    verb.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    verb.add_argument(
        "--model-index", action="store_true", help="write the scores into README.md of the model's folder"
    )
    add_workers(verb)
    add_hub_options(verb)


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Measure one or several models on labelled photos."""
    for name in arguments.names:
        if not name.lower().endswith(".tflite"):
            check_name(name)
    from ..evaluation.run import evaluate

    options = {"progress": shows_progress(arguments), **options_of(arguments, *OPTIONS), **hub_options(arguments)}
    models = arguments.names if len(arguments.names) > 1 else arguments.names[0]
    found = evaluate(models, arguments.data, **options)
    if not found:  # another process speaks
        return 0
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        lines = [line for result in found.get("results", [found]) for line in result_lines(result)]
        lines += [line for pair in found.get("comparisons", []) for line in comparison_lines(pair)]
        print("\n".join(map(plain_text, lines)))
    return 0


def result_lines(result: dict[str, Any]) -> list[str]:
    """The result of one model for people."""
    from ..evaluation.report import percent, with_interval

    metrics, speed = result["metrics"], result["images_per_second"]
    rate = "" if speed is None else f", {speed:.1f} a second"
    lines = [
        f"{result['model']} ({result['runtime']}) on {result['dataset']}: {result['count']:,} photos{rate}",
        f"  top-1  {with_interval(result, 'top1')}",
        f"  top-5  {with_interval(result, 'top5')}",
    ]
    for other in result["others"]:
        top5 = "" if other["top5"] is None else f", top-5 {percent(other['top5'])}"
        part = "" if result["whole"] else ", on all photos"
        lines.append(f"  top-1  {percent(other['top1'])}{top5}  by {other['by']}{part}")
    if "mean_per_class" in metrics:
        lines.append(f"  mean per class  {percent(metrics['mean_per_class'])}")
    lines.append(f"  calibration error  {percent(metrics['calibration_error'])}")
    if result["unreadable"]:
        lines.append(f"  {result['unreadable']:,} photos cannot be read and were left out")
    return lines


def comparison_lines(pair: dict[str, Any]) -> list[str]:
    """How two models differ, for people."""
    from ..evaluation.report import percent

    same = "" if pair["agreement"] is None else f"same label on {percent(pair['agreement'])}; "
    return [
        f"{pair['first']} and {pair['second']}:",
        f"  {same}only the first right {pair['lost']:,}, only the second {pair['gained']:,}; "
        f"p = {pair['p_value']:.3g} (McNemar)",
    ]
