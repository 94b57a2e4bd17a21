"""Image classification: one image to one of K labels. Images are decoded and resized once, and kept as bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from sweeper.tasks.base import Batch
from sweeper.tasks.classification import Classification


class ImageClassification(Classification):
    """See `Classification`; the image processor's resizing runs once, its scaling in every batch."""

    type: ClassVar[str] = "image-classification"
    input_kind: ClassVar[str] = "image"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"

    def cache_key(self) -> str:
        """Encoding depends on the image size only."""
        return f"image-1 image_size={self._spec.image_size}"

    def encode(self, table: pa.Table, preprocessor: Any) -> pa.Table:
        """Decode, convert to RGB and resize to (3, H, W) bytes; scaling and normalising wait for `PixelExamples`."""
        size = {}
        if self._spec.image_size is not None:
            side = self._spec.image_size
            size = {"size": {"height": side, "width": side}, "do_center_crop": False}
        pixels = []
        for cell in table.column("image"):
            with Image.open(io.BytesIO(cell.as_py())) as image:
                rgb = image.convert("RGB")
            output = preprocessor(rgb, do_rescale=False, do_normalize=False, return_tensors="np", **size)
            pixels.append(np.asarray(output["pixel_values"][0]).round().clip(0, 255).astype(np.uint8))
        data = np.stack(pixels)
        flat = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(int(np.prod(data.shape[1:]))), len(data), [None, pa.py_buffer(np.ascontiguousarray(data))]
        )
        columns = {"example_id": table.column("example_id"), "label": table.column("label"), "pixels": flat}
        shape = ",".join(str(side) for side in data.shape[1:])
        return pa.table(columns).replace_schema_metadata({"shape": shape})

    def open(self, encoded: pa.Table, preprocessor: Any) -> PixelExamples:
        """Wrap for random access, with the processor's scale, mean and deviation."""
        channels = int(encoded.schema.metadata[b"shape"].split(b",")[0])
        scale = np.full(channels, preprocessor.rescale_factor if preprocessor.do_rescale else 1.0)
        shift = np.zeros(channels)
        if preprocessor.do_normalize:
            deviation = np.asarray(preprocessor.image_std)
            scale, shift = scale / deviation, -np.asarray(preprocessor.image_mean) / deviation
        return PixelExamples(encoded, scale, shift)


class PixelExamples:
    """Decoded images in Arrow memory, scaled per batch: pixel * scale + shift, by channel."""

    def __init__(self, table: pa.Table, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
        shape = tuple(int(side) for side in table.schema.metadata[b"shape"].split(b","))
        column = table.column("pixels")
        chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        start = chunk.offset * int(np.prod(shape))
        self._pixels = np.frombuffer(chunk.buffers()[1], np.uint8)[start:][: len(chunk) * int(np.prod(shape))]
        self._pixels = self._pixels.reshape(len(chunk), *shape)
        self._scale = torch.as_tensor(scale, dtype=torch.float32)[:, None, None]
        self._shift = torch.as_tensor(shift, dtype=torch.float32)[:, None, None]
        self._targets = table.column("label").to_numpy().astype(np.int64)
        self._ids = table.column("example_id")

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """All ones (N,): images cost alike."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Class indices (N,)."""
        return self._targets  # type: ignore[no-any-return]

    @property
    def example_ids(self) -> Sequence[str]:
        """Names of the examples, in row order."""
        return self._ids.to_pylist()  # type: ignore[no-any-return]

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Gather B images as float32 (B, C, H, W)."""
        pixels = torch.from_numpy(self._pixels[indices]).float()
        return Batch(
            inputs={"pixel_values": pixels * self._scale + self._shift},
            targets=torch.from_numpy(self._targets[indices]),
        )
