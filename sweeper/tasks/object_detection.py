"""Object detection: an image to any number of labelled boxes, by detectors that learn through a matching."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from sweeper.core.errors import InputError, Problem
from sweeper.core.head import HeadSpec, TargetFacts, TargetKind
from sweeper.spec.study import TaskSpec
from sweeper.tasks.base import PLAIN_LOSS, Batch, LossOptions, Metric
from sweeper.tasks.boxes import CLASS, CORNERS, FRAME, NO_BOX, SCORE, follow, frames_of, target_boxes, to_corners
from sweeper.tasks.images import PixelExamples, pixel_scale
from sweeper.tasks.labelled import Labelled
from sweeper.tasks.metrics import DETECTION, detection_scores

if TYPE_CHECKING:
    import torch

MAX_DETECTIONS = 100
"""Detections kept of an image, as COCO's metric counts them."""


class ObjectDetection(Labelled):
    """Labelled boxes in images. See `Labelled`.

    Images are brought to one size: stretched where the processor says height and width (RT-DETR, D-FINE), else made
    to fit a square and padded on the right and below (DETR, YOLOS); its side is ``image_size``, or the processor's
    shortest edge.
    The loss is the model's own (matching and weights of its configuration), of each image alone, so that every image
    counts alike whatever stands beside it.
    """

    type: ClassVar[str] = "object-detection"
    input_kind: ClassVar[str | None] = "image"
    target_kind: ClassVar[TargetKind] = "boxes"
    default_metric: ClassVar[str] = "map"
    max_eval_examples: ClassVar[int] = 16
    """Images of an evaluation batch at most: detectors take large ones."""

    def __init__(self, spec: TaskSpec, facts: TargetFacts | Sequence[str]) -> None:
        super().__init__(spec, facts)
        if find_spec("faster_coco_eval") is None:
            remedy = "install the extra: pip install 'fairsweep[detection]'"
            raise InputError(Problem("task.type", "object-detection needs faster-coco-eval", "not installed", remedy))

    @property
    def head(self) -> HeadSpec:
        """A detector whose class layers fit the classes; what predicts boxes stays the checkpoint's."""
        size = self._spec.image_size
        return HeadSpec(auto_class="AutoModelForObjectDetection", labels=self._facts.classes, image_size=size)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name."""
        return DETECTION

    def cache_key(self) -> str:
        """Encoding depends on the image size only."""
        return f"detection-1 image_size={self._spec.image_size}"

    def encode(self, table: pa.Table, preprocessor: Any) -> pa.Table:
        """Decode and resize to (3, H, W) bytes; boxes stay in pixels of the original image."""
        size, padded = _size(preprocessor, self._spec.image_size)
        fill = _fill(preprocessor)
        pixels = np.empty((len(table), 3, *size), dtype=np.uint8)
        shapes = np.empty((len(table), 2), dtype=np.int64)
        for row, cell in enumerate(table.column("image")):
            with Image.open(io.BytesIO(cell.as_py())) as image:
                rgb = image.convert("RGB")
            shapes[row] = rgb.size
            pixels[row] = _resized(rgb, size, preprocessor.resample, fill if padded else None)
        frames = np.repeat(shapes.max(axis=1, keepdims=True), 2, axis=1) if padded else shapes
        flat = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(int(np.prod(pixels.shape[1:]))), len(pixels), [None, pa.py_buffer(pixels)]
        )
        columns = {
            "example_id": table.column("example_id"),
            "label": table.column("label"),
            "width": pa.array(shapes[:, 0]),
            "height": pa.array(shapes[:, 1]),
            "frame_width": pa.array(frames[:, 0].astype(np.float64)),
            "frame_height": pa.array(frames[:, 1].astype(np.float64)),
            "pixels": flat,
        }
        return pa.table(columns).replace_schema_metadata({"shape": ",".join(map(str, pixels.shape[1:]))})

    def open(self, encoded: pa.Table, preprocessor: Any) -> BoxedImages:
        """Wrap for random access."""
        return BoxedImages(encoded, *pixel_scale(preprocessor, 3), is_padded=_size(preprocessor, None)[1])

    def loss(self, outputs: Any, targets: torch.Tensor, options: LossOptions = PLAIN_LOSS) -> torch.Tensor:  # noqa: ARG002
        """Return what the detector's own loss function made of each image (B,), in fp32."""
        assert options == PLAIN_LOSS, "refused before"
        return outputs.loss  # type: ignore[no-any-return]

    def predict(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Return the 100 most certain detections (B, 100, 6) in fp32, fewer filled up with class -1.

        Of the targets only the frame is looked at, to bring boxes back to pixels of the original image. A detector with
        a class for "no object" gives each query its most probable class; one of sigmoids any pair of query and class.
        """
        import torch

        logits, num_classes = outputs.logits.float(), len(self._facts.classes)
        if logits.shape[-1] == num_classes + 1:
            shares, classes = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
            scores, query = shares.topk(min(MAX_DETECTIONS, shares.shape[1]), dim=1)
            chosen = classes.gather(1, query)
        else:
            flat = logits.sigmoid().flatten(1)
            scores, pair = flat.topk(min(MAX_DETECTIONS, flat.shape[1]), dim=1)
            query, chosen = pair // num_classes, pair % num_classes
        frame = targets[:, :1, FRAME].float()
        corners = to_corners(outputs.pred_boxes.float(), frame).gather(1, query[..., None].expand(-1, -1, 4))
        found = torch.cat([chosen[..., None].float(), scores[..., None], corners], dim=-1)
        full = found.new_zeros(len(found), MAX_DETECTIONS, 6)
        full[..., CLASS] = NO_BOX
        full[:, : found.shape[1]] = found
        return full

    def decide(self, predictions: NDArray[Any], threshold: float | None = None) -> NDArray[Any]:  # noqa: ARG002
        """Return the detections as they are (N, 100, 6): the metric itself goes through all scores."""
        return predictions

    def score(
        self,
        targets: NDArray[Any],
        predictions: NDArray[Any],
        threshold: float | None = None,  # noqa: ARG002
    ) -> dict[str, float]:
        """Score detections (N, 100, 6) against boxes (N, M, 8)."""
        return detection_scores(targets, predictions, len(self._facts.classes))

    def baseline(self, train: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Score the mean training box of each class, given for every image at its place in the frame."""
        answer = np.zeros((len(targets), len(self._facts.classes), 6), dtype=np.float32)
        frames = np.tile(targets[:, :1, FRAME], (1, 1, 2))
        for index in range(len(self._facts.classes)):
            rows, at = np.nonzero((train[:, :, CLASS] == index) & (train[:, :, SCORE] > 0))
            answer[:, index, CLASS] = index if len(rows) else NO_BOX
            if len(rows):
                shares = train[rows, at, CORNERS] / np.tile(train[rows, at, FRAME], (1, 2))
                answer[:, index, SCORE] = len(np.unique(rows)) / len(train)
                answer[:, index, CORNERS] = shares.mean(axis=0) * frames[:, 0]
        return detection_scores(targets, answer, len(self._facts.classes))


class BoxedImages(PixelExamples):
    """Decoded images in Arrow memory with their boxes; see `sweeper.tasks.boxes` for the layout of targets."""

    def __init__(
        self, table: pa.Table, scale: NDArray[np.float64], shift: NDArray[np.float64], *, is_padded: bool
    ) -> None:
        frames = frames_of(table)
        super().__init__(table, scale, shift, targets=target_boxes(table.column("label").to_pylist(), frames))
        self._shown = None
        if is_padded:
            side = self._pixels.shape[-1]
            sizes = np.stack([table.column(name).to_numpy() for name in ("width", "height")], axis=1)
            self._shown = np.maximum(1, np.rint(sizes * side / frames)).astype(np.int64)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Gather B images as float32 (B, 3, H, W), their boxes as labels and targets (B, M, 8)."""
        import torch

        batch = super().batch(indices)
        inputs = {**batch.inputs, "labels": batch.targets}
        if self._shown is not None:
            height, width = self._pixels.shape[-2:]
            shown = self._shown[indices]
            mask = (np.arange(height) < shown[:, 1:2])[:, :, None] & (np.arange(width) < shown[:, :1])[:, None]
            inputs["pixel_mask"] = torch.from_numpy(mask.astype(np.int64))
        return Batch(inputs=inputs, targets=batch.targets, follow=follow)


def _size(preprocessor: Any, side: int | None) -> tuple[tuple[int, int], bool]:
    """Return height and width of the model's input, and whether images are padded to it rather than stretched."""
    size = preprocessor.size
    if size.get("height") and size.get("width"):
        return (side or size["height"], side or size["width"]), False
    side = side or size.get("shortest_edge") or size.get("longest_edge")
    return (side, side), True


def _fill(preprocessor: Any) -> NDArray[np.uint8]:
    """Return the colour of the padding (3, 1, 1): what is zero for the model."""
    mean = np.asarray(preprocessor.image_mean if preprocessor.do_normalize else (0.0, 0.0, 0.0), dtype=np.float64)
    factor = preprocessor.rescale_factor if preprocessor.do_rescale else 1.0
    return np.rint(mean / factor).clip(0, 255).astype(np.uint8)[:, None, None]


def _resized(
    image: Image.Image, size: tuple[int, int], resample: int | None, fill: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Return an image as (3, H, W): stretched, or with ``fill`` made to fit and padded on the right and below."""
    height, width = size
    if fill is not None:
        scale = height / max(image.size)
        width, height = (max(1, round(edge * scale)) for edge in image.size)
    method = Image.Resampling(resample) if resample is not None else Image.Resampling.BILINEAR
    pixels = np.asarray(image.resize((width, height), method), dtype=np.uint8).transpose(2, 0, 1)
    if fill is None:
        return pixels
    canvas = np.broadcast_to(fill, (3, *size)).copy()
    canvas[:, :height, :width] = pixels
    return canvas
