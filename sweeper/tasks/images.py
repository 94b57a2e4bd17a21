"""Image inputs of any task: decoded and resized once, kept as bytes, scaled in every batch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from sweeper.tasks.base import Batch, NamedTargets, target_array


class ImageInputs:
    """One image an example.

    Parameters
    ----------
    image_size:
        Side in pixels; None: the processor's own.
    """

    auto_class = "AutoModelForImageClassification"

    def __init__(self, image_size: int | None) -> None:
        self._image_size = image_size

    def cache_key(self) -> str:
        """Encoding depends on the image size only."""
        return f"image-1 image_size={self._image_size}"

    def encode(self, table: pa.Table, preprocessor: Any) -> pa.Table:
        """Decode, convert to RGB and resize to (3, H, W) bytes; scaling and normalising wait for `PixelExamples`."""
        size = {}
        if self._image_size is not None:
            side = self._image_size
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

    def open(self, encoded: pa.Table, preprocessor: Any, num_labels: int = 0) -> PixelExamples:
        """Wrap for random access, with the processor's scale, mean and deviation."""
        channels = int(encoded.schema.metadata[b"shape"].split(b",")[0])
        return PixelExamples(encoded, *pixel_scale(preprocessor, channels), target_array(encoded, num_labels))


def pixel_scale(preprocessor: Any, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a processor's scale and shift by channel: what rescaling and normalising come to."""
    scale = np.full(channels, preprocessor.rescale_factor if preprocessor.do_rescale else 1.0)
    if not preprocessor.do_normalize:
        return scale, np.zeros(channels)
    deviation = np.asarray(preprocessor.image_std)
    return scale / deviation, -np.asarray(preprocessor.image_mean) / deviation


class PixelExamples(NamedTargets):
    """Decoded images in Arrow memory, scaled per batch: pixel * scale + shift, by channel."""

    def __init__(
        self, table: pa.Table, scale: NDArray[np.float64], shift: NDArray[np.float64], targets: NDArray[Any]
    ) -> None:
        import torch

        shape = tuple(int(side) for side in table.schema.metadata[b"shape"].split(b","))
        column = table.column("pixels")
        chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        start = chunk.offset * int(np.prod(shape))
        self._pixels = np.frombuffer(chunk.buffers()[1], np.uint8)[start:][: len(chunk) * int(np.prod(shape))]
        self._pixels = self._pixels.reshape(len(chunk), *shape)
        self._scale = torch.as_tensor(scale, dtype=torch.float32)[:, None, None]
        self._shift = torch.as_tensor(shift, dtype=torch.float32)[:, None, None]
        super().__init__(table, targets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """All ones (N,): images cost alike."""
        return np.ones(len(self), dtype=np.int64)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Gather B images as float32 (B, C, H, W)."""
        import torch

        pixels = torch.from_numpy(self._pixels[indices]).float()
        return Batch(
            inputs={"pixel_values": pixels * self._scale + self._shift},
            targets=torch.from_numpy(self._targets[indices]),
        )
