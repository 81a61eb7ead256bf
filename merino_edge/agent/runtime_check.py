"""Does the runtime compute rightly here? Asked before anything is timed or trusted.

A wheel may use instructions that this CPU lacks, or compute wrongly on it. Two tiny models, one a
format, multiply in float32 and in 8 bits, and numpy knows what must come out.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from merino_edge.agent.errors import AgentError

if TYPE_CHECKING:
    import numpy.typing as npt

# MatMul, and DynamicQuantizeLinear with MatMulInteger, opset 11; inputs a [8,64], b [64,32], w int8 [64,32].
ONNX_CHECK = base64.b64decode(
    "CAYSADrfAQoRCgFhCgFiEgF5IgZNYXRNdWwKIwoBYRIBcRIBcxIBeiIVRHluYW1pY1F1YW50aXplTGluZWFyChsKAXEKAXcKAXoS"
    "AWkiDU1hdE11bEludGVnZXISBWNoZWNrWhMKAWESDgoMCAESCAoCCAgKAghAWhMKAWISDgoMCAESCAoCCEAKAgggWhMKAXcSDgoM"
    "CAMSCAoCCEAKAgggYhMKAXkSDgoMCAESCAoCCAgKAgggYhMKAWkSDgoMCAYSCAoCCAgKAgggYgsKAXMSBgoECAESAGILCgF6EgYK"
    "BAgCEgBCBAoAEAs="
)

# BATCH_MATMUL of a [4,32] and b [32,16] to y; FULLY_CONNECTED of a and int8 weights [16,32] to i.
TFLITE_CHECK = base64.b64decode(
    "HAAAAFRGTDMUACAABAAIAAwAEAAUAAAAGAAcABQAAAADAAAAGAAAAEwAAABoAgAAdAIAAJACAACQAgAAAgAAABQAAAAgAAAADAANAAwAAAAEAAgA"
    "DAAAAAEAAAB+AAAAfgAAABwAAAAJAAAACQAAAAkAAAABAAAAFAAAAA4AGAAEAAgADAAQABQAAAAQAAAAFAAAAEwBAABUAQAAXAEAAOgBAAAFAAAA"
    "LAAAAFAAAAB0AAAArAAAAAABAAAWABIABAAQAAgADAAAAAAAAAAAABEAAAAYAAAAEAAAAAAAAAAUAAAAAAEAAAIAAAAEAAAAIAAAAAEAAABhAAAA"
    "QAAAABAAAAAAAAAAFAAAAAABAAACAAAAIAAAABAAAAABAAAAYgAAAGgAAAAQAAAAAAAAABQAAAAAAQAAAgAAAAQAAAAQAAAAAQAAAHkAFgAWAAQA"
    "FAAIAAwAEAAAAAAAAAAVABYAAAAUAAAAAQAAABgAAAAoAAAACQEAAAIAAAAQAAAAIAAAAAEAAAB3AAwADAAAAAAABAAIAAAADgAAAAgAAAAMAAAA"
    "AQAAAAAAgD8BAAAAAAAAAAAAAAD8AAAAEAAAAAAAAAAUAAAAAAEAAAIAAAAEAAAAEAAAAAEAAABpAAAAAgAAAAAAAAABAAAAAgAAAAIAAAAEAAAA"
    "AgAAABgAAABIAAAADgAVAAQACAAMABQAEAAAABAAAAAAAAAAEAAAABgAAAAgAAAAZQAAAAIAAAAAAAAAAQAAAAEAAAACAAAABAAEAAQAAABEAAAA"
    "AQAAABAAAAAYAAAAKAAAAAgAAAACAAAAAAAAAAMAAAABAAAABAAAAAwABQAAAAAAAAAEAAwAAAABAAAABQAAAGNoZWNrAAAACwAAAG1lcmluby1l"
    "ZGdlAAIAAAAIAAAAEAAAAHAAAAAGAAgABAAAAAgAAAC8AAAAAAAAAAEAAAAUAAAADgAUAAQACAAMAAAAEAAAABAAAAAQAAAASAAAAHgAAAAAAAAA"
    "AgAAABAAAAAgAAAACAAMAAQACAAIAAAACAAAAAAAAAABAAAAYQAAABwAAAAIAAAAAQAAAAEAAABiAAAAAgAAAAgAAAAYAAAAPAAAAAgAAAACAAAA"
    "AQAAAHkAAABQAAAACAAAAAQAAAABAAAAaQAAAA8AAABzZXJ2aW5nX2RlZmF1bHQAAAAAAAACAABWw5zN6lD0mNYaUDp+sGGPD8e0KM4Qw6dA7y4r"
    "cuy5Im93Xi/h5Iuw1dkUAzFkYEZ60mhsuvkSMTOc+pt1tPNiBi4AWRgl9OgYBEkY+Vy38Pxk8R2UVPIAmTEi10UGj7jCmgCKBjMU9cVl01Xy4zF5"
    "SRecREno3bN7rP6vSRqpnZmGW1XhmsfzCv0eHyAB8nBSQI8TYR6xAg13DLqcMHwOmYtIzPxtwUmWhInM+4MdVAGdU48De9zywdK+jT3kf95IBiCC"
    "XqZ1tkTxRc7CHYHJLWj3dsqQLrZ5EHZFMJFXsJf1nSt7Z21ev0vAjkV6UB11lpzCkx+L4wPyGU5jU0EMGEv46FR54RuMd0+M4WIiD542ILL7DA/K"
    "ApsWgYZoUyz6te7CsfcHUQmen3emcSO/7iQa3OQyIZc5+FgXCSDiMc5kNL5hqGvk3xKGdVk2mj3heUbFtMMV7PTMXyeSc4GorQVTLZb+EGq5PPBh"
    "T53Fsq6RV1TvdkGELUovOgtodsXGN7y9GpSpPySLOTMKybL9rmRlv374ANtrsbz5+q9uTCodbMm8eZDZkyxmO1jEmYOIZLt0pKzGqA7vyhlQfV52"
    "VHzYv1EZFvDqvKGRsazV3DqXq6cGjHsfuv6ovwoHbO1dKV5uvdtNJam4znAoHlGpeMJzqSauV88wUtv1K8cK6w=="
)


def check_runtime(package: str) -> dict[str, object]:
    """Import a runtime and hold its float and int8 products against numpy's.

    Args:
        package: `onnxruntime`, or `ai-edge-litert` or `tflite-runtime`, of which the one installed is taken; or
            `tokenizers`, which a release's own `run.py` needs beside one of them.

    Returns:
        `runtime` (the package that was found), `runtime_version`, `numpy`.

    Raises:
        AgentError: it cannot be imported, or computes wrongly.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise AgentError("runtime", f"cannot import numpy: {error}", "install it, or let us push it") from error
    if package == "onnxruntime":
        name, version, good = _check_onnxruntime()
    elif package in ("ai-edge-litert", "tflite-runtime"):
        name, version, good = _check_tflite(package)
    elif package == "tokenizers":
        name, version, good = _check_tokenizers()
    else:
        raise AgentError("request", f"this agent knows no runtime {package!r}")
    if not good:
        raise AgentError("runtime", f"{name} {version} computes wrong numbers on this CPU")
    return {"runtime": name, "runtime_version": version, "numpy": np.__version__, "providers": _providers(name)}


def _providers(name: str) -> list[str]:
    """Return what onnxruntime was built to execute on; other runtimes do not say."""
    if name != "onnxruntime":
        return []
    import onnxruntime

    return [str(provider) for provider in onnxruntime.get_available_providers()]


def _check_onnxruntime() -> tuple[str, str, bool]:
    import numpy as np

    try:
        import onnxruntime
    except ImportError as error:
        raise AgentError(
            "runtime", f"cannot import numpy and onnxruntime: {error}", "install them, or let us push them"
        ) from error
    random = np.random.Generator(np.random.PCG64(1))
    a = random.standard_normal((8, 64)).astype(np.float32)
    b = random.standard_normal((64, 32)).astype(np.float32)
    drawn = random.integers(-127, 128, (64, 32))
    drawn[1::2] = np.clip(drawn[1::2], -128 - drawn[::2], 128 - drawn[::2])  # neighbours as in exported files
    w = np.clip(drawn, -127, 127).astype(np.int8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ONNX_CHECK, options, providers=["CPUExecutionProvider"])
    y, i, s, z = session.run(None, {"a": a, "b": b, "w": w})
    quantized = np.clip(np.rint(a / s) + z, 0, 255).astype(np.int64) - int(z)
    whole = np.abs(i - quantized @ w.astype(np.int64)).max()
    good = np.allclose(y, a @ b, rtol=1e-4, atol=1e-4) and whole <= 127  # one step of rounding in a
    return "onnxruntime", str(onnxruntime.__version__), bool(good)


def _check_tokenizers() -> tuple[str, str, bool]:
    """Let a byte-level BPE of one merge encode and decode a text."""
    try:
        import tokenizers
    except ImportError as error:
        raise AgentError("runtime", f"cannot import tokenizers: {error}", "let us push it") from error
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*letters, "Ġa"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    ids = tokenizer.encode("b a\u20ac").ids
    expected = [vocabulary[word] for word in ("b", "Ġa", "\u00e2", "\u0124", "\u00ac")]
    good = ids == expected and tokenizer.decode(ids) == "b a\u20ac"
    return "tokenizers", str(tokenizers.__version__), good


def check_tokenizer(path: str, text: str, token_ids: list[int]) -> None:
    """Hold the tokenizer of a bundle against what the host makes of a text.

    Raises:
        AgentError: it cannot be loaded here, or cuts the text otherwise.
    """
    import tokenizers

    try:
        found = list(tokenizers.Tokenizer.from_file(path).encode(text).ids)
    except Exception as error:
        version = tokenizers.__version__
        raise AgentError("runtime", f"tokenizers {version} cannot load the bundle's tokenizer: {error}") from error
    if found != token_ids:
        version = tokenizers.__version__
        raise AgentError("smoke", f"tokenizers {version} on the device cuts text into other tokens than the host's")


def _check_tflite(wanted: str) -> tuple[str, str, bool]:
    import numpy as np

    from merino_edge.agent.session_tflite import find_interpreter

    interpreter, package, version = find_interpreter(wanted)
    try:
        runtime: Any = interpreter(model_content=TFLITE_CHECK, num_threads=1)
        runtime.allocate_tensors()
    except Exception as error:  # tflite-runtime with numpy 2 imports, and fails here
        older = "'numpy<2'" if package == "tflite-runtime" else package
        raise AgentError(
            "runtime", f"{package} {version} does not start with numpy {np.__version__}", f"pip install -U {older}"
        ) from error
    random = np.random.Generator(np.random.PCG64(1))
    values = {
        "a": random.standard_normal((4, 32)).astype(np.float32),
        "b": random.standard_normal((32, 16)).astype(np.float32),
    }
    for detail in runtime.get_input_details():
        runtime.set_tensor(detail["index"], values[detail["name"]])
    runtime.invoke()
    found = {d["name"]: runtime.get_tensor(d["index"]) for d in runtime.get_output_details()}
    a, w = values["a"], np.random.Generator(np.random.PCG64(2)).integers(-127, 128, (16, 32)).astype(np.float32)
    half_step = np.abs(a).max(axis=1, keepdims=True) / 254  # rows of a are rounded to 8 bits
    wrong: npt.NDArray[Any] = np.abs(found["i"] - a @ w.T) > 1.01 * half_step * np.abs(w).sum(axis=1)
    return package, version, bool(np.allclose(found["y"], a @ values["b"], rtol=1e-4, atol=1e-4) and not wrong.any())
