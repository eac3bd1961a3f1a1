"""What people read about exported files: lines for the terminal, a table and a plot of all precisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobilevit_hub.cards import markdown_text
from mobilevit_hub.files import write_file

if TYPE_CHECKING:
    from .export import Export


def report_lines(export: Export) -> list[str]:
    """One file: name and value, a line each."""
    record, found = export.record, export.inspection
    source, target, labels = record["input"], record["output"], record["labels"]["count"]
    low, high = source["range"]
    counts = ", ".join(f"{count} {name}" for name, count in found.operations.items())
    left = ", ".join(f"{count} {name}" for name, count in found.left_to_cpu.items()) or "nothing"
    rows = [
        (
            "input",
            f"{source['name']} {_shape(source['shape'])} {source['dtype']}, RGB, {low} to {high}",
        ),
        ("output", f"{target['name']} {_shape(target['shape'])}, {labels} labels"),
        ("size", f"{found.size / 1e6:.2f} MB, {found.size / export.float_size:.0%} of fp32"),
        ("operations", f"{found.count}: {counts}"),
        ("XNNPACK", f"{found.delegated:.1%} of the operations in {found.partitions} partition; left out: {left}"),
        (
            "GPU",
            "ready but for the CAST of the input"
            if not found.gpu_obstacles
            else f"no: {'; '.join(found.gpu_obstacles)}",
        ),
        (
            "difference",
            f"{export.difference.largest:.1e} of the scale at most, {export.difference.error:.1e} on average; the same "
            f"class on {export.difference.agreement:.0%} of {export.difference.images} photos",
        ),
        *(
            (
                "latency",
                f"{entry.median:.1f} ms ({entry.low:.1f}–{entry.high:.1f}) on {entry.threads} "
                f"thread{'s' * (entry.threads > 1)} of {export.processor}",
            )
            for entry in export.latencies
        ),
    ]
    if found.float_operations:
        counts = ", ".join(f"{count} {name}" for name, count in found.float_operations.items())
        rows.append(("in float", counts))
    if record["calibration"] is not None:
        rows.append(("calibration", f"{record['calibration']['images']} photos of {record['calibration']['source']}"))
    if (compared := export.comparison) is not None:
        least, most = compared.interval
        rows += [
            (
                "top-1",
                f"{compared.top1:.2%} (95 % interval {least:.2%} to {most:.2%}), source {compared.source_top1:.2%}, on "
                f"{compared.count:,} photos of {compared.dataset}",
            ),
            (
                "agreement",
                f"{compared.agreement:.2%}; {compared.lost} photos lost, {compared.gained} gained, McNemar p = "
                f"{compared.p_value:.2g}",
            ),
        ]
    return [f"{name:11}  {value}" for name, value in rows]


def _shape(shape: list[int]) -> str:
    return "×".join(map(str, shape))


def comparison_table(exports: list[Export]) -> list[list[str]]:
    """All precisions: the head, and a row for each file."""
    compared = exports[0].comparison is not None
    head = ["precision", "size", "1 thread", "2 threads", "XNNPACK", "GPU", "same class"]
    head += ["top-1", "95 % interval", "McNemar p"] * compared
    rows = [head]
    for export in exports:
        found = export.inspection
        row = [
            export.precision,
            f"{found.size / 1e6:.2f} MB ({found.size / export.float_size:.0%})",
            *(f"{entry.median:.1f} ms" for entry in export.latencies),
            f"{found.delegated:.1%} in {found.partitions}",
            "no" if found.gpu_obstacles else "ready",
        ]
        if export.comparison is None:
            row.append(f"{export.difference.agreement:.0%} of {export.difference.images}")
        else:
            low, high = export.comparison.interval
            row += [
                f"{export.comparison.agreement:.2%} of {export.comparison.count:,}",
                f"{export.comparison.top1:.2%}",
                f"{low:.2%} to {high:.2%}",
                f"{export.comparison.p_value:.2g}",
            ]
        rows.append(row)
    return rows


def write_comparison(exports: list[Export], output: Path) -> None:
    """Writes the table as Markdown and the plot as PNG, beside the files and under their common name."""
    first = exports[0]
    table = comparison_table(exports)
    lines = [
        f"# {markdown_text(first.record['name'])} as .tflite",
        "",
        f"Input {_shape(first.record['input']['shape'])} {first.record['input']['dtype']}; times on {first.processor}, "
        "median of alternating calls.",
    ]
    if first.comparison is not None:
        lines[-1] += (
            f" The source has {first.comparison.source_top1:.2%} top-1 on {first.comparison.count:,} photos of "
            f"{markdown_text(first.comparison.dataset)}."
        )
    lines += ["", *("| " + " | ".join(row) + " |" for row in (table[0], ["---"] * len(table[0]), *table[1:])), ""]
    write_file(output.with_suffix(".md"), "\n".join(lines).encode())
    from mobilevit_hub.reports import draw_trade_offs

    points = [
        {
            "label": export.precision,
            "megabytes": export.inspection.size / 1e6,
            "milliseconds": export.latencies[0].median,
            "top1": None if export.comparison is None else export.comparison.top1,
            "interval": None if export.comparison is None else export.comparison.interval,
            "agreement": export.difference.agreement,
        }
        for export in exports
    ]
    draw_trade_offs(points, output.with_suffix(".png"), str(first.record["name"]))
