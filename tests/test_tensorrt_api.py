"""Our calls of TensorRT, TensorRT-RTX and CUDA, and our fakes of them, fit what NVIDIA's bindings have.

The bindings are read, and so are our modules: nothing is built and nothing runs, so no GPU is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lineament.engines import driver
from lineament.engines.cuda import Cuda, first_gpu
from lineament.engines.tensorrt_library import installed, library
from lineament.landmarks.types import LineamentError
from tests.api_calls import Calls, api_calls
from tests.nvidia_bindings import Member, Signature, bindings

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"tensorrt": "tensorrt_bindings", "tensorrt-rtx": "tensorrt_rtx_bindings"}
ONLY: dict[str, set[str]] = {
    "tensorrt": set(),
    "tensorrt-rtx": {
        "BuilderFlag.REQUIRE_USER_ALLOCATION",
        "DynamicShapesKernelSpecializationStrategy",
        "IExecutionContext.is_stream_capturable",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    },
}
"""what our code uses after asking which of the two it has"""


def read(module: str) -> dict[str, Member]:
    """Skips where the bindings are not installed, such as on an ARM processor or on macOS."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of a package around it
        found = None
    if found is None:
        pytest.skip(f"needs {module}, which `make test` installs where NVIDIA has a wheel")
    return bindings(module)


@pytest.fixture(params=MODULES)
def release(request: pytest.FixtureRequest) -> tuple[str, dict[str, Member]]:
    """The library's name and what it has."""
    return request.param, read(MODULES[request.param])


def tensorrt_calls(api: dict[str, Member], absent: Collection[str] = (), **sources: str) -> Calls:
    """Of every module of engines with a trt in it, or of other sources."""
    ours = {path.name: path.read_text() for path in (ROOT / "engines").glob("*.py")}
    sources = sources or {name: text for name, text in ours.items() if re.search(r"\btrt\b", text)}
    return api_calls(sources, api, roots={"trt", "_trt", "module"}, absent=absent)


def cuda_calls(api: dict[str, Member], **sources: str) -> Calls:
    sources = sources or {"cuda.py": (ROOT / "engines/cuda.py").read_text()}
    return api_calls(sources, api, roots={"runtime", "_runtime"}, by_name={"_do"})


# ---- our calls


def test_our_calls_of_tensorrt_fit_both_libraries(release: tuple[str, dict[str, Member]]) -> None:
    name, api = release
    (other,) = ONLY.keys() - {name}
    calls = tensorrt_calls(api, absent=ONLY[other])
    assert calls.complaints == []
    # each is reached another way: by an attribute, an argument, a loop, a return and a list of parser errors
    assert calls.used >= {
        "Runtime.deserialize_cuda_engine",
        "IExecutionContext.execute_async_v3",
        "IBuilderConfig.add_optimization_profile",
        "ILayer.type",
        "ITimingCache.serialize",
        "EngineInspector.get_engine_information",
        "ParserError.node_name",
        "ILogger.Severity.INTERNAL_ERROR",
    }


def test_what_we_use_of_one_library_is_missing_in_the_other() -> None:
    apis = {name: read(module) for name, module in MODULES.items()}
    for name, theirs in ONLY.items():
        (other,) = ONLY.keys() - {name}
        used = tensorrt_calls(apis[name], absent=ONLY[other]).used
        assert theirs <= used and not theirs & apis[other].keys(), f"ONLY[{name!r}] has more than it needs"


def test_our_calls_of_cuda_fit() -> None:
    api = read("cuda.bindings.runtime")
    calls = cuda_calls(api)
    assert calls.complaints == []
    assert calls.used >= {"cudaGetDeviceCount", "cudaStreamEndCapture", "cudaMalloc", "cudaStreamNonBlocking"}
    # of a result, which is a tuple with a status and so is not followed
    assert {f"cudaDeviceProp.{name}" for name in ("name", "major", "minor")} <= api.keys()


CONTEXT = "def run(trt):\n    context = trt.Runtime(log).deserialize_cuda_engine(plan).create_execution_context()\n    "


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (CONTEXT + "context.execute_async_v9(stream)", "there is no IExecutionContext.execute_async_v9"),
        (CONTEXT + "context.execute_async_v3()", "needs stream_handle"),
        (CONTEXT + "context.execute_async_v3(stream, 0)", "takes 1 arguments, got 2"),
        (CONTEXT + "context.execute_async_v3(queue=stream)", "has no parameter queue"),
        (CONTEXT + "context.execute_async_v3(stream, stream_handle=stream)", "stream_handle is given twice"),
        (CONTEXT + "context.set_device_memory(memory)", "needs size"),
        (CONTEXT + "context.engine = 1", "IExecutionContext.engine cannot be set"),
        ("trt.Runtime()", "needs logger"),
        ("trt.ExecutionContextAllocationStrategy.USER_MANGLED", "there is no .*USER_MANGLED"),
        ("getattr(trt.BuilderFlag, 'FP61')", "there is no BuilderFlag.FP61"),
        (
            "class A:\n"
            "    def __init__(self, trt):\n        self._engine = trt.Runtime(log).deserialize_cuda_engine(plan)\n"
            "    def context(self, trt):\n"
            "        return self._engine.create_execution_context(trt.TensorIOMode.INPUT)",
            "strategy is ExecutionContextAllocationStrategy, got trt.TensorIOMode.INPUT",
        ),
        (
            "def parsed(trt, parser):\n    return [parser.get_error(i) for i in range(parser.num_errors)]\n"
            "def read(trt):\n    for error in parsed(trt, trt.OnnxParser(net, log)):\n        error.dsc()",
            "there is no ParserError.dsc",
        ),
        ("def place(context):\n    context.set_tensor_address(0)", "context could not be followed"),
        ("class Bar(trt.IProgressMonitor):\n    def phase_begin(self): ...", "Bar lacks IProgressMonitor.phase_start"),
        (
            "class Log(trt.ILogger):\n    def log(self, message): ...",
            r"Log\.log takes \['message'\], but ILogger\.log is called with others",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_found(release: tuple[str, dict[str, Member]], source: str, said: str) -> None:
    complaints = tensorrt_calls(release[1], source=source).complaints
    assert any(re.search(said, complaint) for complaint in complaints), complaints


@pytest.mark.parametrize(
    "source",
    [
        CONTEXT + "context.set_device_memory(size=8, memory=address)",
        CONTEXT + "context.engine.get_tensor_name(0)",
        "getattr(trt.NetworkDefinitionCreationFlag, 'A_FLAG_OF_LATER', None)",
        "errors = [trt.OnnxParser(net, log).get_error(i) for i in range(9)]\nerrors.append(errors[0].desc())",
        "class Log(trt.ILogger):\n    def __init__(self):\n        self.said = []\n"
        "    def log(self, severity, message):\n        self.said.append(message)\nLog().said",
    ],
)
def test_a_call_that_fits_is_no_complaint(release: tuple[str, dict[str, Member]], source: str) -> None:
    assert tensorrt_calls(release[1], source=source).complaints == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("runtime.cudaMallok(8)", "there is no cudaMallok"),
        ("runtime.cudaMalloc(8, 8)", "takes 1 arguments, got 2"),
        ("runtime.cudaMemcpyKind.cudaMemcpySidewise", "there is no cudaMemcpyKind.cudaMemcpySidewise"),
        ("self._do('cudaMallok', 8)", "there is no cudaMallok"),
        ("self._do('cudaStreamSynchronize')", "needs stream"),
        (
            "self._do('cudaMemcpyAsync', 1, 2, 3, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal, 0)",
            "kind is cudaMemcpyKind",
        ),
    ],
)
def test_a_call_of_cuda_that_does_not_fit_is_found(source: str, said: str) -> None:
    complaints = cuda_calls(read("cuda.bindings.runtime"), source=source).complaints
    assert any(said in complaint for complaint in complaints), complaints


def test_a_member_of_one_library_only_is_allowed_where_it_is_named() -> None:
    api = {"Runtime": Member("class"), "Runtime.open": Member("function", (Signature((), ""),))}
    source = "def run(trt):\n    trt.Runtime().open()\n    trt.Runtime().close()"
    assert tensorrt_calls(api, source=source).complaints == ["source:3: there is no Runtime.close"]
    assert tensorrt_calls(api, absent={"Runtime.close"}, source=source).complaints == []


# ---- our fakes


def fakes() -> dict[str, Any]:
    """Every class named Fake... in tests/fake_*.py; its `real` is the class that it stands for, '' for the module."""
    pytest.importorskip("onnxruntime")
    found: dict[str, Any] = {}
    for path in (ROOT / "tests").glob("fake_*.py"):
        module = importlib.import_module(f"tests.{path.stem}")
        named = {name: kind for name, kind in vars(module).items() if name.startswith("Fake")}
        found |= {name: kind for name, kind in named.items() if kind.__module__ == module.__name__}
    return found


def differences(played: Any, path: str, api: dict[str, Member]) -> list[str]:
    """What a fake class, or a namespace of values, has that the real one lacks or has otherwise."""
    found = []
    for name, value in vars(played).items():
        if name.startswith("_") or name == "real":
            continue
        inside = f"{path}.{name}".lstrip(".")
        real = api.get(inside)
        if real is None:
            found.append(f"there is no {inside}")
        elif isinstance(value, SimpleNamespace | type):
            found += differences(value, inside, api)
        elif callable(value) or isinstance(value, staticmethod):
            ours = [one for one in inspect.signature(value).parameters if one != "self"]
            if not any(fits(ours, signature) for signature in real.signatures):
                theirs = [[one.name for one in signature.parameters] for signature in real.signatures]
                found.append(f"{inside} takes {ours}, the real one {theirs}")
        elif real.kind == "function":
            found.append(f"{inside} is a function")
    return found


def fits(ours: list[str], real: Signature) -> bool:
    """Whether a fake with these parameters can be called as the real one; it may omit optional ones."""
    n = len(ours)
    return ours == [one.name for one in real.parameters[:n]] and not any(one.needed for one in real.parameters[n:])


def test_a_fake_has_no_call_that_the_real_library_lacks(release: tuple[str, dict[str, Member]]) -> None:
    name, api = release
    (other,) = ONLY.keys() - {name}
    played = {name: kind for name, kind in fakes().items() if name != "FakeCuda"}
    assert {"FakeTrt", "FakeContext", "FakeEngine"} <= played.keys()
    allowed = {f"there is no {path}" for path in ONLY[other]}
    for kind in played.values():
        if kind.real not in ONLY[other]:
            assert [said for said in differences(kind, kind.real, api) if said not in allowed] == []


def test_the_comparison_of_fakes_finds_what_is_wrong(release: tuple[str, dict[str, Member]]) -> None:
    class FakeContext:
        engine = None

        def execute_async_v2(self, stream_handle: int) -> bool: ...

        def execute_async_v3(self, stream: int) -> bool: ...

        def set_device_memory(self, memory: int) -> None: ...

        set_input_shape = 3

    class FakeTrt:
        TensorIOMode = SimpleNamespace(INPUT="in", OUT="out")

    assert differences(FakeContext, "IExecutionContext", release[1]) == [
        "there is no IExecutionContext.execute_async_v2",
        "IExecutionContext.execute_async_v3 takes ['stream'], the real one [['stream_handle']]",
        "IExecutionContext.set_device_memory takes ['memory'], the real one [['memory', 'size']]",
        "IExecutionContext.set_input_shape is a function",
    ]
    assert differences(FakeTrt, "", release[1]) == ["there is no TensorIOMode.OUT"]


def test_the_fake_cuda_has_the_methods_of_ours() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        plain = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
        return {name: [*inspect.signature(value).parameters] for name, value in plain.items() if callable(value)}

    assert methods(fakes()["FakeCuda"]) == methods(Cuda)


# ---- bindings alone are no GPU and no TensorRT


def test_the_bindings_are_of_the_release_that_is_installed_on_a_gpu() -> None:
    def pinned(requirements: str, package: str) -> str:
        (version,) = re.findall(rf"^{package}==([\w.]+)", (ROOT / requirements).read_text(), re.M)
        return str(version)

    assert pinned("requirements-dev.txt", "tensorrt_cu13_bindings") == pinned("requirements-gpu.txt", "tensorrt")


def test_bindings_without_tensorrt_are_not_taken_for_tensorrt() -> None:
    read("tensorrt_bindings")
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT itself is installed")
    assert not installed("tensorrt")
    with pytest.raises(LineamentError, match=r"tensorrt cannot be imported.*pip install"):
        library("tensorrt")


def test_cuda_bindings_without_a_driver_still_report_that_there_is_none() -> None:
    read("cuda.bindings.runtime")
    if driver.installed():
        pytest.skip("an NVIDIA driver is installed")
    with pytest.raises(LineamentError, match="this machine has no NVIDIA driver"):
        first_gpu()


def test_bindings_that_cannot_be_read_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_bindings.py").write_text("raise ImportError('libbroken.so.3: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)broken_bindings is installed but cannot be read: .*libbroken\.so\.3"):
        bindings("broken_bindings")
