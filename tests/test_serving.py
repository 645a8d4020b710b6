"""What other servers take is what they read: by Triton's own message, and by nvinfer's rules, emulated on a CPU."""

from __future__ import annotations

import configparser
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineament.engines import WEIGHTS, load
from lineament.engines.deepstream import Rect, nvinfer_crop, nvinfer_rect
from lineament.engines.distance import distances_px
from lineament.engines.engine_file import PlanKey, write_engine
from lineament.engines.model_file import read_card
from lineament.engines.portrait import portrait
from lineament.engines.serving import ServingConfig, main, write
from lineament.engines.tensorrt_library import installed, library
from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import apply, crop_from_frame, frame_from_unit, invert, rgb_crops, warp
from lineament.landmarks.types import F32, U8, LineamentError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from lineament.engines.fp16 import precisions_of_layers  # noqa: E402 - after the check that it can

DOC = (Path(__file__).resolve().parent.parent / "docs" / "serving.md").read_text()
CLIENT, PROBES = re.findall(r"^```python\n(.*?)^```", DOC, re.M | re.S)
STUDENT = WEIGHTS / "student-wflw98.onnx"
FACE_XYXY = np.array([180.0, 75.0, 270.0, 165.0])
"""of the portrait, as points bound it"""
KEY = PlanKey("aa" * 32, "bb" * 32, "tensorrt", "11.4.0", "NVIDIA H200", (9, 0), (1, 4, 16), "fp16")


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student for both servers, where the command writes it by default."""
    folder = tmp_path_factory.mktemp("serving") / "out" / "serving"
    write(ServingConfig("student", folder))
    return folder


# ---- Triton's configuration


TRITON_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


def read_config(text: str) -> Any:
    """As Triton reads it: by its own message. Raises ParseError on anything that it does not know."""
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse(text, messages.ModelConfig())


def told(ports: Any) -> list[tuple[str, str, list[int]]]:
    """Names, types and shapes without the batch of a configuration's inputs or outputs, as the backend sees them."""
    from tritonclient.grpc.model_config_pb2 import DataType

    return [
        (port.name, DataType.Name(port.data_type), list(port.reshape.shape if port.HasField("reshape") else port.dims))
        for port in ports
    ]


def agrees(folder: Path, model: Path) -> Any:
    """The configuration in folder, once it is what ONNX Runtime sees in model."""
    config, session = read_config((folder / "config.pbtxt").read_text()), session_of(model)
    for ports, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert told(ports) == [(port.name, TRITON_TYPES[port.type], port.shape[1:]) for port in real]
        assert all(port.dims and min(port.dims) > 0 for port in ports), "Triton has no scalars"
        assert not any(isinstance(port.shape[0], int) for port in real), "a fixed batch cannot be batched"
    assert config.name == folder.name and config.max_batch_size > 0 and config.HasField("dynamic_batching")
    return config


@pytest.mark.parametrize("name", ["student", "student-fast"])
def test_triton_reads_a_configuration_that_agrees_with_the_file(name: str, tmp_path: Path) -> None:
    write(ServingConfig(name, tmp_path, max_batch=8))
    folder = tmp_path / "triton" / name
    config = agrees(folder, folder / "1" / "model.onnx")
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 8)
    assert [group.kind for group in config.instance_group] == [config.instance_group[0].KIND_AUTO]
    card, whole = json.loads(config.parameters["card"].string_value), read_card(folder / "1" / "model.onnx")
    assert ModelCard.from_json(json.dumps(card)) == replace(whole, nme={}, built_with={})


@pytest.mark.parametrize(
    ("was", "is_now"),
    [("max_batch_size", "max_batchsize"), ("TYPE_FP32", "TYPE_FLOAT"), ("KIND_AUTO", "KIND_ANY"), ("dims", "shape")],
)
def test_a_misspelt_configuration_is_refused(was: str, is_now: str, out: Path) -> None:
    text = (out / "triton" / "student" / "config.pbtxt").read_text()
    read_config(text)
    from google.protobuf.text_format import ParseError

    with pytest.raises(ParseError):
        read_config(text.replace(was, is_now))


def test_the_tensorrt_provider_gets_a_half_graph_and_a_profile_of_its_batches(out: Path, tmp_path: Path) -> None:
    write(ServingConfig("student", tmp_path, name="fast_98", max_batch=4, tensorrt=True))
    folder = tmp_path / "triton" / "fast_98"
    config = agrees(folder, folder / "1" / "model.onnx")
    (provider,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert provider.name == "tensorrt"
    shapes = {key: value for key, value in provider.parameters.items() if key.endswith("_shapes")}
    sizes = {"min": 1, "opt": 4, "max": 4}
    assert shapes == {f"trt_profile_{which}_shapes": f"rgb:{n}x128x128x3" for which, n in sizes.items()}
    assert provider.parameters["precision_mode"] == "FP16"
    n_half, n_single = precisions_of_layers(onnx.load(folder / "1" / "model.onnx"))
    assert n_half > 10 * n_single
    crops = rgb_crops(portrait(), [crop_from_frame(FACE_XYXY, card_of(out))], (128, 128))
    points = [
        session_of(where / "triton" / name / "1" / "model.onnx").run(["points"], {"rgb": crops})[0]
        for where, name in ((out, "student"), (tmp_path, "fast_98"))
    ]
    assert distances_px(*points).max() < 0.2


def test_a_retrained_model_does_not_run_in_the_engines_of_the_one_before(tmp_path: Path) -> None:
    """Both servers would open them: their names do not depend on the weights."""
    model = onnx.load(STUDENT)
    bias = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * np.float32(1.01), bias.name))
    onnx.save(model, tmp_path / "later.onnx")
    caches = []
    engine = tmp_path / "out" / "deepstream" / "landmarks.onnx_b16_gpu0_fp32.engine"
    for name, is_kept in ((str(STUDENT), True), (str(STUDENT), True), (str(tmp_path / "later.onnx"), False)):
        engine.parent.mkdir(parents=True, exist_ok=True)
        write(ServingConfig(name, tmp_path / "out", tensorrt=True))
        if not caches:
            engine.write_bytes(b"built by nvinfer")
        assert engine.exists() == is_kept
        config = read_config((tmp_path / "out" / "triton" / "student" / "config.pbtxt").read_text())
        (provider,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        caches.append(provider.parameters["trt_engine_cache_path"])
    assert caches[0] == caches[1] != caches[2] and all(cache.startswith("/cache/student-") for cache in caches)


def engine(folder: Path, **changes: Any) -> Path:
    """An .engine of the student, with its .onnx beside it as `make engine` leaves it."""
    (folder / "best.onnx").write_bytes(STUDENT.read_bytes())
    card = read_card(STUDENT)
    key = replace(KEY, **{"weights_sha256": card.weights_sha256, **changes})
    write_engine(
        folder / "best.engine", replace(card, precision="fp16"), key, "", {"crop": b"no", "points": b"the plan"}
    )
    return folder / "best.engine"


def test_an_engine_becomes_a_plan_with_its_own_batches(tmp_path: Path) -> None:
    write(ServingConfig(str(engine(tmp_path)), tmp_path, max_batch=2))
    folder = tmp_path / "triton" / "student"
    config = agrees(folder, tmp_path / "best.onnx")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 16), "the plan's limit, not the option's"
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert [group.kind for group in config.instance_group] == [config.instance_group[0].KIND_GPU]
    assert json.loads(config.parameters["card"].string_value)["precision"] == "fp16"
    assert (folder / "1" / "model.plan").read_bytes() == b"the plan"
    assert not (tmp_path / "deepstream").exists(), "nvinfer does not pass bytes"


def test_engines_that_triton_cannot_run_are_refused(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"library": "tensorrt-rtx"}, r"built by tensorrt-rtx, which Triton does not have; give the \.onnx"),
        ({"batches": (2, 4, 16)}, "takes at least 2 crops, but Triton may pass one; rebuild"),
        ({"weights_sha256": "cc" * 32}, r"best\.onnx has other weights than best\.engine, whose outputs it lists"),
    ]
    for changes, said in cases:
        with pytest.raises(LineamentError, match=said):
            write(ServingConfig(str(engine(tmp_path, **changes)), tmp_path))
    (tmp_path / "best.onnx").unlink()
    with pytest.raises(LineamentError, match=r"no model file at .*best\.onnx"):
        write(ServingConfig(str(tmp_path / "best.engine"), tmp_path))
    assert not (tmp_path / "triton").exists()


def test_a_checkpoint_is_exported_and_a_net_without_presence_has_one_output(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lineament.train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64))).eval()
    save(net, new_card(net, "tiny", 1.3), path := tmp_path / "best.safetensors")
    assert main([str(path), "--out", str(tmp_path / "served"), "--face-class", "2"]) == 0
    folder = tmp_path / "served" / "triton" / "tiny"
    assert [port.name for port in agrees(folder, folder / "1" / "model.onnx").output] == ["points"]
    assert nvinfer_of(tmp_path / "served")["operate-on-class-ids"] == "2"


def test_a_wrong_model_or_option_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed, quantized = onnx.load(STUDENT), onnx.load(STUDENT)
    quantized.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["dequantized"]))
    quantized.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.uint8), "q"))
    quantized.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "scale"))
    onnx.save(quantized, tmp_path / "int8.onnx")
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    for args, said in (
        (["nope"], "nope cannot be served; choose one of student, student-fast, b5, or give a file: .onnx, .engine"),
        (["mesh"], "mesh cannot be served"),
        ([str(tmp_path / "no.onnx")], "no model file at"),
        ([str(tmp_path / "fixed.onnx")], "has a fixed batch size, expected a dynamic one"),
        ([str(tmp_path / "int8.onnx")], "the model is quantized for CPUs; give the .onnx or checkpoint"),
        (["student", "--max-batch", "0"], "got max_batch 0, face_class 0; expected 1 to 1024"),
        (["student", "--name", "a/b"], "'a/b' cannot be the name of a model in Triton; give --name"),
        (["student", "--name", ".."], "'..' cannot be the name of a model in Triton; give --name"),
    ):
        assert main([*args, "--out", str(tmp_path / "served")]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {said}") or said in error
        assert error.count("\n") == 1 and not (tmp_path / "served").exists()


def card_of(out: Path) -> ModelCard:
    return read_card(out / "deepstream" / "landmarks.onnx")


# ---- Triton's client, against a server with Triton's service definition


class RefusedError(Exception):
    """What Triton answers to a request that its configuration does not allow."""


class Served:
    """A model repository's model, run as its configuration allows."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config((folder / "config.pbtxt").read_text())
        self._session = session_of(folder / "1" / "model.onnx")
        self.calls = 0

    def infer(self, given: dict[str, Any]) -> dict[str, F32]:
        """Arrays by name, of the dims that the configuration gives."""
        from tritonclient.utils import triton_to_np_dtype

        feeds = {}
        for port in self.config.input:
            datatype, shape, data = given.pop(port.name)
            if datatype != told([port])[0][1].removeprefix("TYPE_"):
                raise RefusedError(f"{port.name} is {datatype}")
            if list(shape[1:]) != list(port.dims) or not 1 <= shape[0] <= self.config.max_batch_size:
                raise RefusedError(f"{port.name} has shape {shape}")
            feeds[port.name] = np.frombuffer(data, triton_to_np_dtype(datatype)).reshape(shape)
        if given:
            raise RefusedError(f"unknown inputs {list(given)}")
        self.calls += 1
        names = [port.name for port in self.config.output]
        found = dict(zip(names, self._session.run(names, feeds)))
        return {port.name: found[port.name].reshape(-1, *port.dims) for port in self.config.output}


@pytest.fixture
def served(out: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Answers every InferenceServerClient of the test."""
    grpc = pytest.importorskip("grpc")
    client = pytest.importorskip("tritonclient.grpc")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    model = Served(out / "triton" / "student")

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - Triton's name
            assert request.name == model.config.name
            return service_pb2.ModelConfigResponse(config=model.config)

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - Triton's name
            inputs = zip(request.inputs, request.raw_input_contents)
            try:
                found = model.infer({one.name: (one.datatype, tuple(one.shape), data) for one, data in inputs})
            except RefusedError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            answer = service_pb2.ModelInferResponse(model_name=request.model_name)
            for name, array in found.items():
                answer.outputs.add(name=name, datatype="FP32", shape=array.shape)
                answer.raw_output_contents.append(array.tobytes())
            return answer

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    real, opened = client.InferenceServerClient, []

    def connect(url: str) -> Any:
        assert url == "localhost:8001", "Triton's port"
        opened.append(real(f"127.0.0.1:{port}"))
        return opened[-1]

    monkeypatch.setattr(client, "InferenceServerClient", connect)
    yield model
    for one in opened:
        one.close()
    server.stop(None).wait()


def test_the_documented_client_gets_the_points_of_our_own_landmarker(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", portrait())
    space: dict[str, Any] = {"__name__": "client"}
    exec(compile(CLIENT, "docs/serving.md", "exec"), space)
    card, (face,) = space["card"], space["faces"]
    assert served.calls == 1
    with load("student", "onnxruntime") as landmarker:
        own = landmarker(space["crops"])
    wanted = apply(frame_from_unit(space["matrices"][0], card.input_hw), own.points_unit[0])
    np.testing.assert_allclose(space["points"], wanted, atol=0.01)
    np.testing.assert_allclose(space["found"].as_numpy("confidence"), own.confidence[:, None], atol=1e-4)
    np.testing.assert_allclose(space["found"].as_numpy("visibility"), own.visibility, atol=1e-4)
    low, high = face.box_xyxy.reshape(2, 2)
    assert ((space["points"] > low - 12) & (space["points"] < high + 12)).all(), "the points are on the face"


def test_a_server_that_keeps_to_the_configuration_refuses_other_crops(served: Served) -> None:
    client = pytest.importorskip("tritonclient.grpc")
    from tritonclient.utils import InferenceServerException

    connection = client.InferenceServerClient("localhost:8001")
    for shape, datatype in (
        ((17, 128, 128, 3), np.uint8),
        ((1, 112, 112, 3), np.uint8),
        ((1, 128, 128, 3), np.float32),
    ):
        rgb = client.InferInput("rgb", shape, "UINT8" if datatype is np.uint8 else "FP32")
        rgb.set_data_from_numpy(np.zeros(shape, datatype))
        with pytest.raises(InferenceServerException, match=r"rgb (has shape|is FP32)"):
            connection.infer("student", [rgb])
    assert not served.calls


# ---- DeepStream: nvinfer, emulated


NVINFER_KEYS = """
    gie-unique-id process-mode interval labelfile-path gpu-id secondary-reinfer-interval output-tensor-meta
    disable-output-host-copy auto-inc-mem max-gpu-mem-per enable-dla use-dla-core dump-input-tensor dump-output-tensor
    overwrite-input-tensor overwrite-output-tensor ip-tensor-file op-tensor-files raw-output-file-write batch-size
    tensor-meta-pool-size network-mode model-engine-file int8-calib-file workspace-size output-blob-names is-classifier
    network-type force-implicit-batch-dim infer-dims output-io-formats layer-device-precision model-color-format
    net-scale-factor offsets mean-file maintain-aspect-ratio symmetric-padding scaling-filter scaling-compute-hw
    network-input-order input-tensor-from-meta custom-lib-path parse-bbox-func-name parse-bbox-instance-mask-func-name
    parse-segmentation-func-name engine-create-func-name parse-classifier-func-name custom-network-config onnx-file
    num-detected-classes cluster-mode crop-objects-to-roi-boundary strongly-typed dynamic-properties warmup-engine
    stabilize-buffer-count classifier-type classifier-threshold classifier-async-mode segmentation-threshold
    segmentation-output-order output-instance-mask input-object-min-width input-object-min-height input-object-max-width
    input-object-max-height operate-on-gie-id operate-on-class-ids filter-out-class-ids
"""
"""of the group [property], without those of Caffe, UFF and TLT models: gstnvinfer_property_parser.h of DeepStream 9"""


def nvinfer_of(out: Path) -> dict[str, str]:
    """nvinfer's configuration. A GKeyFile has no interpolation, and comments on lines of their own."""
    parser = configparser.RawConfigParser(comment_prefixes=("#",), delimiters=("=",), strict=True)
    parser.read_string((out / "deepstream" / "config_infer_landmarks.txt").read_text())
    assert parser.sections() == ["property"]
    return dict(parser["property"])


@dataclass
class Nvinfer:
    """nvinfer on the CPU, by its configuration: cuts as get_converted_buffer does in gstnvinfer.cpp, normalises as
    nvdsinfer_conversion.cu does, and runs the graph in ONNX Runtime."""

    out: Path
    properties: dict[str, str] = field(init=False)
    session: Any = field(init=False)

    def __post_init__(self) -> None:
        self.properties = nvinfer_of(self.out)
        self.session = session_of(self.out / "deepstream" / self.properties["onnx-file"])

    def cut(self, bgr: U8, rect: Rect) -> U8:
        """(height, width, 3) of the network, RGB."""
        height, width = self.input_hw
        left, top = (2 * math.ceil(int(start) / 2) for start in rect[:2])
        wide, high = (int(side) // 2 * 2 for side in rect[2:])
        assert left >= 0 and top >= 0 and wide and high, "a negative coordinate is a huge unsigned one"
        assert left + wide <= bgr.shape[1] and top + high <= bgr.shape[0]
        inner_hw = [height, width]
        if self.properties["maintain-aspect-ratio"] == "1":
            tall, broad = width * high / wide, height * wide / high
            inner_hw = [int(tall), width] if tall <= height else [height, int(broad)]
        y, x = [(side - inner) // 2 for side, inner in zip((height, width), inner_hw)]
        if self.properties["symmetric-padding"] != "1":
            y = x = 0
        assert self.properties["scaling-filter"] == "1", "bilinear"
        part = cv2.resize(bgr[top : top + high, left : left + wide], inner_hw[::-1], interpolation=cv2.INTER_LINEAR)
        cut = np.zeros((height, width, 3), np.uint8)
        cut[y : y + inner_hw[0], x : x + inner_hw[1]] = part
        assert self.properties["model-color-format"] == "0", "RGB"
        return cut[..., ::-1]

    @property
    def input_hw(self) -> tuple[int, int]:
        channels, height, width = map(int, self.properties["infer-dims"].split(";"))
        assert channels == 3
        return height, width

    def planes(self, bgr: U8, rects: Sequence[Rect]) -> F32:
        """(N, 3, height, width) what the net is fed for objects with these rectangles."""
        assert self.properties["network-input-order"] == "0" and len(rects) <= int(self.properties["batch-size"])
        offsets = np.array(list(map(float, self.properties.get("offsets", "0;0;0").split(";"))), np.float32)
        rgb = np.stack([self.cut(bgr, rect) for rect in rects]).astype(np.float32)
        planes = np.float32(self.properties["net-scale-factor"]) * (rgb - offsets)
        return np.ascontiguousarray(planes.transpose(0, 3, 1, 2))

    def __call__(self, bgr: U8, rects: Sequence[Rect]) -> dict[str, F32]:
        """The outputs."""
        names = [output.name for output in self.session.get_outputs()]
        feeds = {self.session.get_inputs()[0].name: self.planes(bgr, rects)}
        return dict(zip(names, self.session.run(names, feeds)))


def rect_of(box_xyxy: Any) -> Rect:
    """A box of ours, from centres of pixels, as a rectangle of DeepStream, from edges."""
    x0, y0, x1, y1 = map(float, box_xyxy)
    return x0 + 0.5, y0 + 0.5, x1 - x0, y1 - y0


def test_nvinfer_reads_every_key_and_the_graph_is_what_it_feeds(out: Path) -> None:
    properties = nvinfer_of(out)
    assert set(properties) <= set(re.findall(r"[a-z0-9-]+", NVINFER_KEYS))
    numbers = {"process-mode": 2, "network-type": 100, "output-tensor-meta": 1, "operate-on-gie-id": 1}
    assert {key: int(properties[key]) for key in numbers} == numbers, (
        "secondary, raw tensors, on the detector's objects"
    )
    assert properties["gie-unique-id"] != properties["operate-on-gie-id"] and "offsets" not in properties
    # types come from the graph; a builder flag for FP16 would contradict that
    assert (properties["strongly-typed"], properties["network-mode"]) == ("1", "0")
    path = out / "deepstream" / properties["onnx-file"]
    (fed,) = session_of(path).get_inputs()
    assert fed.type == "tensor(float)" and fed.shape[1:] == list(map(int, properties["infer-dims"].split(";")))
    assert isinstance(fed.shape[0], str), "nvinfer sets the batch"
    shapes = {port.name: port.shape[1:] for port in session_of(path).get_outputs()}
    assert shapes == {"points": [98, 2], "confidence": [1], "visibility": [98]}, "without the batch, none is empty"
    n_half, n_single = precisions_of_layers(onnx.load(path))
    assert n_half > 10 * n_single
    assert properties["model-engine-file"] == f"{path.name}_b{properties['batch-size']}_gpu0_fp32.engine"


def test_emulated_nvinfer_finds_the_points_of_our_own_landmarker(out: Path) -> None:
    nvinfer, card, bgr = Nvinfer(out), card_of(out), portrait()
    rect = nvinfer_rect(rect_of(FACE_XYXY), card, bgr.shape[:2])
    cut, ours = nvinfer_crop(rect, card), crop_from_frame(FACE_XYXY, card)
    found = nvinfer(bgr, [rect])
    points = apply(frame_from_unit(cut, card.input_hw), found["points"][0])
    px = 256 * ours[0, 0] / card.input_hw[1]
    with load("student", "onnxruntime") as landmarker:
        crops = rgb_crops(bgr, [cut, ours], card.input_hw)
        wanted = landmarker(crops)
    same, own = (
        apply(frame_from_unit(matrix, card.input_hw), unit) for matrix, unit in zip((cut, ours), wanted.points_unit)
    )
    fed = nvinfer.planes(bgr, [rect])[0]
    assert np.abs(fed - crops[0].transpose(2, 0, 1)).mean() < 0.3, "the graph normalises: it wants grey levels, RGB"
    from_same, from_own = (px * np.linalg.norm(points - other, axis=1) for other in (same, own))
    assert from_same.max() < 0.2, "of a 256-px crop, for the same rectangle"
    assert from_own.mean() < 0.5 and from_own.max() < 1.0, "for a rectangle rounded to even numbers"
    np.testing.assert_allclose(found["confidence"], wanted.confidence[:1, None], atol=0.01)


@pytest.mark.parametrize("scale", [1.2, (1.2, 1.3)])
@pytest.mark.parametrize("frame_hw", [(512, 512), (150, 512), (512, 140)])
def test_the_matrix_is_that_of_the_cut_also_where_the_frame_is_small(
    scale: float | tuple[float, float], frame_hw: tuple[int, int], out: Path
) -> None:
    card, nvinfer = replace(card_of(out), crop_scale=scale), Nvinfer(out)
    if isinstance(scale, tuple):
        nvinfer.properties |= {"maintain-aspect-ratio": "0", "symmetric-padding": "0"}
    bgr = np.ascontiguousarray(portrait()[: frame_hw[0], 150 : 150 + frame_hw[1]])
    rect = nvinfer_rect((25.0, 60.0, 100.0, 130.0), card, bgr.shape[:2])
    wanted = cv2.cvtColor(warp(bgr, nvinfer_crop(rect, card), card.input_hw), cv2.COLOR_BGR2RGB)
    cut = nvinfer.cut(bgr, rect)
    inside = cut.any(2)
    # at the border of the cut, ours sees the frame beyond
    inside = cv2.erode(np.pad(inside.astype(np.uint8), 1), np.ones((5, 5), np.uint8))[1:-1, 1:-1].astype(bool)
    assert inside.mean() > 0.5
    assert np.abs(cut.astype(int) - wanted)[inside].mean() < 1, "grey levels"
    shifted = np.abs(np.roll(cut, 1, 1).astype(int) - wanted)[inside].mean()
    assert shifted > 3, "a pixel's shift would show"


@given(st.floats(-100, 2000), st.floats(-100, 1200), st.floats(8, 600), st.floats(8, 600))
def test_a_grown_rectangle_is_our_crop_rounded_and_moved_into_the_frame(x: float, y: float, w: float, h: float) -> None:
    card, frame_hw = ModelCard("a", "wflw98", (128, 128), 1.2), (1080, 1921)
    left, top, wide, high = rect = nvinfer_rect((x, y, w, h), card, frame_hw)
    assert all(number % 2 == 0 for number in rect) and wide == high
    assert left >= 0 and top >= 0 and left + wide <= frame_hw[1] and top + high <= frame_hw[0]
    box = np.array([x, y, x + w, y + h]) - 0.5
    corners = np.array([[-0.5, -0.5], [127.5, 127.5]])
    wanted = apply(invert(crop_from_frame(box, card)), corners)
    if (wanted[0] >= 1).all() and (wanted[1] <= np.array([frame_hw[1], frame_hw[0]]) - 3).all():
        np.testing.assert_allclose(apply(invert(nvinfer_crop(rect, card)), corners), wanted, atol=2)
    else:
        assert abs(wide - 1.2 * max(w, h)) <= 1.01, "it is moved, not shrunk"


@pytest.mark.parametrize("rect", [(0, 0, 0, 10), (0, 0, 10, -1), (math.nan, 0, 10, 10), (0, 0, math.inf, 10)])
def test_a_rectangle_without_area_is_refused(rect: Rect) -> None:
    with pytest.raises(ValueError, match="empty or not finite"):
        nvinfer_rect(rect, ModelCard("a", "wflw98", (128, 128), 1.2), (1080, 1920))


# ---- DeepStream: the probes, with the emulation between them


@dataclass
class Item:
    """An object of a frame, as pyservicemaker shows it: rect_params is a copy until it is assigned."""

    class_id: int
    rect: Rect
    tensors: list[Any] = field(default_factory=list)

    @property
    def rect_params(self) -> Any:
        return SimpleNamespace(**dict(zip(("left", "top", "width", "height"), self.rect)))

    @rect_params.setter
    def rect_params(self, value: Any) -> None:
        self.rect = (value.left, value.top, value.width, value.height)

    @property
    def tensor_items(self) -> list[Any]:
        return self.tensors


class Chain:
    """In place of pyservicemaker.Pipeline: runs its probes round the emulated nvinfer on one frame."""

    def __init__(self, nvinfer: Nvinfer, bgr: U8, items: list[Item]) -> None:
        self.added: dict[str, tuple[str, dict[str, Any]]] = {}
        self.links: list[tuple[Any, ...]] = []
        self._probes: dict[str, Any] = {}
        self._nvinfer, self._bgr, self._items = nvinfer, bgr, items
        self.seen: list[Rect] = []

    def __call__(self, name: str) -> Chain:
        return self

    def add(self, kind: str, name: str, properties: dict[str, Any] | None = None) -> Chain:
        self.added[name] = (kind, properties or {})
        return self

    def link(self, *names: Any) -> Chain:
        self.links.append(names)
        return self

    def attach(self, name: str, probe: Any) -> Chain:
        self._probes[name] = probe
        return self

    def start(self) -> Chain:
        frame = SimpleNamespace(pad_index=0, frame_number=7, object_items=self._items)
        batch = SimpleNamespace(frame_items=[frame])
        self._probes["faces"].handle_metadata(batch)
        for item in self._items:
            if item.class_id == int(self._nvinfer.properties["operate-on-class-ids"]):
                self.seen.append(item.rect)
                layers = {name: array[0] for name, array in self._nvinfer(self._bgr, [item.rect]).items()}
                meta = SimpleNamespace(get_layers=lambda layers=layers: layers)
                item.tensors.append(SimpleNamespace(as_tensor_output=lambda meta=meta: meta))
        self._probes["landmarks"].handle_metadata(batch)
        return self

    def wait(self) -> None: ...


def test_the_documented_probes_grow_the_faces_and_bring_the_points_to_the_frame(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvinfer, card = Nvinfer(out), card_of(out)
    bgr = np.zeros((1080, 1920, 3), np.uint8)
    bgr[300:812, 900:1412] = portrait()
    shift = np.array([900.0, 300.0])
    face, other = Item(0, rect_of(FACE_XYXY + np.tile(shift, 2))), Item(1, (10.0, 10.0, 60.0, 80.0))
    chain, before = Chain(nvinfer, bgr, [other, face]), face.rect
    smaker, cupy = ModuleType("pyservicemaker"), ModuleType("cupy")
    smaker.BatchMetadataOperator, smaker.Pipeline = object, chain  # type: ignore[attr-defined]
    smaker.Probe = lambda name, operator: operator  # type: ignore[attr-defined]
    cupy.from_dlpack = lambda array: SimpleNamespace(get=lambda: array)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyservicemaker", smaker)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.chdir(out.parents[1])
    found: list[F32] = []
    monkeypatch.setattr("lineament.landmarks.geometry.apply", lambda *args: found.append(apply(*args)) or found[-1])
    space: dict[str, Any] = {"__name__": "probes"}
    exec(compile(PROBES, "docs/serving.md", "exec"), space)
    (grown,) = chain.seen
    assert grown == nvinfer_rect(before, card, (1080, 1920)) and grown[2] > 1.15 * before[2]
    assert face.rect == before and other.rect == (10.0, 10.0, 60.0, 80.0) and not space["detected"]
    ours = crop_from_frame(FACE_XYXY, card)
    with load("student", "onnxruntime") as landmarker:
        unit = landmarker(rgb_crops(portrait(), [ours], card.input_hw)).points_unit[0]
    wanted = apply(frame_from_unit(ours, card.input_hw), unit) + shift
    assert len(found) == 1 and np.linalg.norm(found[0] - wanted, axis=1).mean() < 0.5, "px of the frame"
    kind, properties = chain.added["landmarks"]
    assert kind == "nvinfer" and Path(properties["config-file-path"]).is_file()
    assert chain.links[-1] == ("mux", "faces", "landmarks", "sink")


@pytest.mark.skipif(not installed("tensorrt-rtx"), reason="needs tensorrt-rtx: pip install -r requirements-rtx.txt")
def test_nvidias_parser_builds_the_graph_strongly_typed_with_nvinfers_profile(out: Path) -> None:
    trt = library("tensorrt-rtx").module
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    properties = nvinfer_of(out)
    assert parser.parse((out / "deepstream" / properties["onnx-file"]).read_bytes()), parser.get_error(0).desc()
    rgb, dims = network.get_input(0), tuple(map(int, properties["infer-dims"].split(";")))
    assert network.num_inputs == 1 and rgb.dtype == trt.float32 and tuple(rgb.shape) == (-1, *dims)
    most = int(properties["batch-size"])
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    profile.set_shape(rgb.name, (1, *dims), (most, *dims), (most, *dims))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    size = (out / "deepstream" / properties["onnx-file"]).stat().st_size
    assert plan is not None and plan.nbytes < 1.5 * size, "in half precision"
