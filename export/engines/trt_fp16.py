"""`trt_fp16`: FP16 from the embeddings to the classifier, for Triton's tensorrt backend."""

from __future__ import annotations

from export.engines.trt import TensorRTEngine
from export.verify.gates import FP16, FP16_GATES


class TrtFp16(TensorRTEngine):
    """FP16 alone."""

    name = "trt_fp16"
    model = "clickbert_trt_fp16"
    precision = FP16
    colour = "#5b8e7d"
    gates = FP16_GATES


ENGINE = TrtFp16()
