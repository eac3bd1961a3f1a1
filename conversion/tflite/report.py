"""What people read about exported files: lines for the terminal, a table and a plot of all precisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilevit_hub.figures import BLUE, GREEN, GREY, ORANGE, new_figure, png_of
from mobilevit_hub.publishing.cards import markdown_text

if TYPE_CHECKING:
    from .record import Export


def report_lines(export: Export) -> list[str]:
    """One file: name and value, a line each."""
    record, found = export.record, export.inspection
    source, target, labels = record["input"], record["output"], record["labels"]["count"]
    low, high = source["range"]
    cast = " but for the CAST of the input" * ("CAST" in found.operations)
    gpu = "; ".join(found.gpu_obstacles) or f"should run whole{cast}, by the delegate's list; not tried on one"
    size = f", {export.share_of_fp32:.0%} of fp32" if export.precision != "fp32" else ""
    same = round(export.difference.agreement * export.difference.images)
    steps = record["preprocessing"]
    short = steps["resize"].get("shortest_edge")
    resize = f"short side {short}" if short else "{width}×{height}".format(**steps["resize"])
    crop = "{width}×{height}".format(**steps["crop"])
    counts = ", ".join(f"{count} {name}" for name, count in found.operations.items())
    left = ", ".join(f"{count} {name}" for name, count in found.not_delegated.items()) or "nothing"
    rows = [
        (
            "input",
            f"{source['name']} {_shape(source['shape'])} {source['dtype']}, RGB, {low} to {high}",
        ),
        ("photo", f"resize to {resize}, {steps['interpolation']}, then centre crop {crop}; the app does this"),
        ("output", f"{target['name']} {_shape(target['shape'])}, {labels} labels"),
        ("size", f"{found.size / 1e6:.2f} MB{size}"),
        ("operations", f"{found.count}: {counts}"),
        ("XNNPACK", f"{found.delegated:.1%} of the operations in {found.partitions} partition; left out: {left}"),
        ("GPU", gpu),
        (
            "difference",
            f"logits {export.difference.error:.1e} off overall, {export.difference.largest:.1e} at most, of their "
            f"size; the same class on {same} of {export.difference.images} built-in photos",
        ),
        *(
            (
                "latency",
                f"{entry.median:.1f} ms (quartiles {entry.low:.1f}–{entry.high:.1f}) on {entry.threads} "
                f"thread{'s' * (entry.threads > 1)} of this computer, {export.processor}",
            )
            for entry in export.latencies
        ),
    ]
    if found.float_operations:
        counts = ", ".join(f"{count} {name}" for name, count in found.float_operations.items())
        rows.append(("still float", counts))
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
            f"{found.size / 1e6:.2f} MB ({export.share_of_fp32:.0%})",
            *(f"{entry.median:.1f} ms" for entry in export.latencies),
            f"{found.delegated:.1%} in {found.partitions}",
            "use fp16" if found.int8_weights else "no" if found.gpu_obstacles else "fits",
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


def comparison_page(exports: list[Export]) -> bytes:
    """The table as Markdown."""
    first, table = exports[0], comparison_table(exports)
    text = (
        f"Input {_shape(first.record['input']['shape'])} {first.record['input']['dtype']}; times on {first.processor}, "
        "median of alternating calls."
    )
    if first.comparison is not None:
        text += (
            f" The source has {first.comparison.source_top1:.2%} top-1 on {first.comparison.count:,} photos of "
            f"{markdown_text(first.comparison.dataset)}."
        )
    rows = [f"| {' | '.join(row)} |" for row in (table[0], ["---"] * len(table[0]), *table[1:])]
    legend = (
        "XNNPACK: share of the operations that it takes, and in how many pieces. Same class: as the source, on the "
        "same photos. McNemar p: above 0.05 no difference in accuracy was found. Times are of this computer, not of "
        "a phone."
    )
    return "\n".join(
        [f"# {markdown_text(first.record['name'])} as .tflite", "", text, "", *rows, "", legend, ""]
    ).encode()


def comparison_plot(exports: list[Export]) -> bytes:
    """The plot as PNG: latency against accuracy; the area of a point is the file's size.

    Accuracy is top-1 with its interval or, where nothing was compared, agreement with the source.
    """
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    measured = exports[0].comparison is not None
    # fp32 and fp16 lie in one place where a processor computes both alike, so the texts part.
    styles = ((GREY, 8), (BLUE, -26), (GREEN, 8), (ORANGE, 8))
    for export, (color, offset) in zip(exports, styles, strict=False):
        milliseconds, megabytes = export.latencies[0].median, export.inspection.size / 1e6
        share = 100 * export.difference.agreement
        if export.comparison is not None:
            share = 100 * export.comparison.top1
            low, high = (100 * bound for bound in export.comparison.interval)
            axes.errorbar(milliseconds, share, yerr=[[share - low], [high - share]], color=color, capsize=3)
        axes.scatter(milliseconds, share, s=90 * megabytes, color=color, alpha=0.75, linewidths=0)
        axes.annotate(
            f"{export.precision}\n{megabytes:.1f} MB",
            (milliseconds, share),
            xytext=(10, offset),
            textcoords="offset points",
            color=color,
            fontsize=9,
        )
    axes.set_title(str(exports[0].record["name"]), fontsize=11, parse_math=False)
    axes.set_xlabel("milliseconds an image, 1 thread")
    axes.set_ylabel("top-1 (%), 95 % interval" if measured else "same class on 32 built-in photos (%)")
    if measured:
        axes.margins(y=0.3)
    else:
        axes.set_ylim(0, 115)
    axes.set_xlim(0, 1.25 * max(export.latencies[0].median for export in exports))
    axes.grid(alpha=0.25)
    return png_of(figure)
