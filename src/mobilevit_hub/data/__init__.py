"""Labelled photos, opened from folders, parquet files and the Hub, and prepared by threads ahead of the network."""

from .labelled import LabelledImages, Photo, StreamedImages
from .opening import open_images, open_split, public_name, stream_images

__all__ = [
    "LabelledImages",
    "Photo",
    "StreamedImages",
    "open_images",
    "open_split",
    "public_name",
    "stream_images",
]
