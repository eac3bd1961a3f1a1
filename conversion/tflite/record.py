"""What is known about a `.tflite` file that was written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .inspection import Inspection
from .measurement import Comparison, Difference, Latency, processor_name


@dataclass
class Export:
    """A file that was written, and what is known about it."""

    path: str
    record: dict[str, Any]
    """What the file says about itself: input, output, preprocessing, source, calibration."""
    inspection: Inspection
    difference: Difference
    """From the source, on the built-in photos."""
    float_size: int
    """Bytes of the float32 network."""
    latencies: list[Latency] = field(default_factory=list)
    comparison: Comparison | None = None
    processor: str = field(default_factory=processor_name)
    """What the latencies were measured on."""

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""
        return str(self.record["precision"])

    @property
    def share_of_fp32(self) -> float:
        """Its size in parts of the float32 file's."""
        return 1.0 if self.precision == "fp32" else self.inspection.size / self.float_size

    def report(self) -> dict[str, Any]:
        """What the sidecar holds under this name."""
        return {
            **self.inspection.to_dict(),
            "share_of_fp32": round(self.share_of_fp32, 4),
            "difference": asdict(self.difference),
            "latency": {"processor": self.processor, "milliseconds": [entry.to_dict() for entry in self.latencies]},
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {"path": self.path, **self.record, "report": self.report()}
