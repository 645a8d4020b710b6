"""Runs an ONNX landmark model on the CPU with OpenVINO: the default. Imported only on demand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lineament.engines.model_file import (
    OUTPUTS,
    REMAKE,
    FileLandmarker,
    Port,
    check_graph,
    landmarks_of,
    read_card,
)
from lineament.landmarks.types import F32, U8, Landmarks, LineamentError

Precision = Literal["f32", "bf16", "auto"]

_PASSING = ("Add", "Convert", "Gather", "Multiply", "Reshape", "Sigmoid", "Squeeze", "Unsqueeze")
"""operators allowed between the last linear layer and the points"""

log = logging.getLogger(__name__)


class OpenVinoLandmarker(FileLandmarker):
    """A landmarks.types.Landmarker. Reads and compiles in the constructor, so a bad file fails before a stream starts.

    Faces run one after the other in a graph compiled for batch 1, so no frame waits for a graph of a new batch size to
    compile. On few cores batches gain little: docs/engines.md lists crops/s by batch.
    """

    def __init__(
        self, path: Path, precision: Precision | None = None, threads: int | None = None, throughput: bool = False
    ) -> None:
        """precision: f32 gives the same points on every processor; bf16 is faster on processors that have it, and less
        exact; auto is bf16 on processors built for it, else f32. None takes the card's. Layers that the file stores in
        int8 always run in int8.

        threads: None uses all cores. One may be faster than two if a camera thread runs next to a small graph.
        throughput: for many faces per call: faces run in parallel, each on few cores, instead of one on all cores.
        """
        import openvino as ov

        if precision not in (None, "f32", "bf16", "auto"):
            raise ValueError(f"precision is {precision!r}, expected f32, bf16 or auto")
        super().__init__(path, read_card(path))
        precision = precision or ("bf16" if self._card.precision == "bf16" else "f32")
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY",
            "ENABLE_HYPER_THREADING": True,
        }
        # without it OpenVINO chooses
        if precision != "auto":
            config["INFERENCE_PRECISION_HINT"] = precision
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            log.warning("%s runs in f32 because this processor has no bf16", path.name)
            config["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            model = core.read_model(path)
            # before the batch becomes 1, so that errors show the shapes of the file
            check_graph(path, self._card, _ports(model.inputs), _ports(model.outputs))
            height, width = self._card.input_hw
            model.reshape([1, height, width, 3])
            if config.get("INFERENCE_PRECISION_HINT") != "f32":
                _keep_last_sum_exact(model)
            graph = compiled(core, model, config, path)
        except (RuntimeError, ValueError) as error:  # ValueError if its message, or a name, is not valid text
            raise self._failed(error) from error
        self.precision = "bf16" if "bfloat16" in str(graph.get_property("INFERENCE_PRECISION_HINT")) else "f32"
        """of the layers that are not int8"""
        n = graph.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if throughput else 1
        self._slots = [_Slot(graph) for _ in range(n)]

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        try:
            return self._inferred(rgb_NHWC)
        except RuntimeError as error:  # corrupt weights, or out of memory
            raise self._failed(error) from error

    def _inferred(self, rgb_NHWC: U8) -> Landmarks:
        n, slots = len(rgb_NHWC), self._slots
        found = {name: np.empty((n, *one.shape[1:]), np.float32) for name, one in slots[0].outputs.items()}
        if n == 1 or len(slots) == 1:
            # in this thread: a hand-over to another is expensive for a small graph
            for i in range(n):
                slots[0].input_NHWC[0] = rgb_NHWC[i]
                slots[0].request.infer()
                slots[0].copy_to(found, i)
            return landmarks_of(found)
        for i in range(n + len(slots)):
            slot, before = slots[i % len(slots)], i - len(slots)
            if 0 <= before < n:
                slot.request.wait()
                slot.copy_to(found, before)
            if i < n:
                slot.input_NHWC[0] = rgb_NHWC[i]
                slot.request.start_async()
        return landmarks_of(found)

    def _failed(self, error: Exception) -> LineamentError:
        reason = " ".join(str(error).split())[-300:]
        return LineamentError(f"OpenVINO cannot run {self._path}: {reason}; {REMAKE}")

    def _release(self) -> None:
        del self._slots


def compiled(core: Any, model: Any, config: dict[str, Any], path: Path) -> Any:
    """model compiled for the CPU, in f32 if bf16 fails. path: for messages.

    bf16 may be unavailable although the processor has it: a hypervisor or ONEDNN_MAX_CPU_ISA hides the instructions
    from oneDNN, while OpenVINO still expects them.
    """
    try:
        return core.compile_model(model, "CPU", config)
    except RuntimeError as error:
        if config.get("INFERENCE_PRECISION_HINT") == "f32":
            raise
        graph = core.compile_model(model, "CPU", {**config, "INFERENCE_PRECISION_HINT": "f32"})
        reason = " ".join(str(error).split())[-80:]
        log.warning("%s runs in f32 because OpenVINO cannot compile it in bf16 here: %s", path.name, reason)
        return graph


class _Slot:
    """An inference request and its buffers, for one face."""

    def __init__(self, graph: Any) -> None:
        self.request: Any = graph.create_infer_request()
        self.input_NHWC: U8 = self.request.get_input_tensor().data
        there = {name for output in graph.outputs for name in output.get_names()}
        self.outputs: dict[str, F32] = {n: self.request.get_tensor(n).data for n in OUTPUTS if n in there}

    def copy_to(self, found: Mapping[str, F32], i: int) -> None:
        """Fills entry i of each output."""
        for name, one in self.outputs.items():
            found[name][i] = one[0]


def _keep_last_sum_exact(model: Any) -> None:
    """Keeps bf16 from rounding the points themselves.

    Between 0.5 and 1 the spacing of bf16 is one pixel of a 256-px crop. OpenVINO runs the last linear layer in bf16,
    but not a product and a sum after the last layer, so this replaces the layer by those: exact, and no slower.
    """
    from openvino import opset13 as ops

    for result in model.get_results():
        node = result.input_value(0).get_node()
        while node.get_type_name() in _PASSING:
            node = node.input_value(0).get_node()
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_a"]:
            continue
        x, weights = node.input_value(0), node.input_value(1)
        stored = weights.get_node()
        if stored.get_type_name() == "Convert":  # weights stored in half precision
            stored = stored.input_value(0).get_node()
        if x.get_partial_shape().rank.get_length() != 2 or stored.get_type_name() != "Constant":
            continue
        if not node.get_attributes()["transpose_b"]:
            weights = ops.transpose(weights, np.array([1, 0])).output(0)
        total = ops.reduce_sum(ops.multiply(x, weights), np.array([1]), keep_dims=False)
        row = ops.unsqueeze(total, np.array([0])).output(0)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(row)
    model.validate_nodes_and_infer_types()


def _ports(ports: list[Any]) -> list[Port]:
    return [
        Port(
            # a port may have no name
            min(port.get_names(), default=""),
            tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()),
            str(np.dtype(port.get_element_type().to_dtype())),
        )
        for port in ports
    ]
