"""The packed_cpu backend on the real tritonserver, with models that have nothing to do with BERT."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.server import Addresses, Server
from serving.triton import ServingError
from tests.serving.busy_cores import busy_cores, needs_bound_cores, waiting_in_the_schedule
from tests.serving.small_models import value, write_model
from tests.waiting import eventually

INT32, INT64, FLOAT = TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT

CHUNKED = """max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 200000 }
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true },
        { name: "lengths" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]
batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "y" source_input: "lengths" }
parameters { key: "chunk_by" value { string_value: "lengths" } }
parameters { key: "chunk_elements" value { string_value: "12" } }
parameters { key: "nan_is_error" value { string_value: "true" } }"""


def write_repository(repository: Path) -> None:
    node = helper.make_node
    write_model(
        repository,
        "plain",  # y = x + x, batched: [batch, 3]
        [node("Add", ["x", "x"], ["y"])],
        [value("x", FLOAT, "n", 3)],
        [value("y", FLOAT, "n", 3)],
        """max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 200000 }
        input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }""",
    )
    write_model(
        repository,
        "ragged",  # gathers x at `index` of the merged batch: an index out of range fails the whole execution
        [
            node("Gather", ["x", "index"], ["y"]),
            node("Identity", ["counts"], ["seen"]),
            node("Unsqueeze", ["y", "one"], ["picked"]),
        ],
        [value("x", INT64, "n"), value("index", INT32, "m"), value("counts", INT32, "c")],
        [value("picked", INT64, "m", 1), value("seen", INT32, "c")],
        """max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 200000 }
        input [ { name: "x" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true },
                { name: "index" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true } ]
        batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "counts" data_type: TYPE_INT32
                      source_input: "x" }
        output [ { name: "picked" data_type: TYPE_INT64 dims: [ -1, 1 ] } ]
        batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "picked" source_input: "index" }""",
        (onnx.numpy_helper.from_array(np.array([1]), "one"),),
    )
    write_model(
        repository,
        "chunked",  # each segment's length, how many segments its execution had, and log(`x` at its start)
        [
            node("Shape", ["lengths"], ["together"]),
            node("Cast", ["lengths"], ["as_float"], to=FLOAT),
            node("Cast", ["together"], ["together_float"], to=FLOAT),
            node("Expand", ["together_float", "together"], ["everywhere"]),
            node("CumSum", ["lengths", "zero"], ["ends"]),
            node("Sub", ["ends", "lengths"], ["starts"]),
            node("Gather", ["x", "starts"], ["heads"]),
            node("Log", ["heads"], ["logs"]),
            node("Unsqueeze", ["as_float", "one"], ["column_1"]),
            node("Unsqueeze", ["everywhere", "one"], ["column_2"]),
            node("Unsqueeze", ["logs", "one"], ["column_3"]),
            node("Concat", ["column_1", "column_2", "column_3"], ["y"], axis=1),
        ],
        [value("x", FLOAT, "n"), value("lengths", INT32, "m")],
        [value("y", FLOAT, "m", 3)],
        CHUNKED,
        (
            onnx.numpy_helper.from_array(np.array(0), "zero"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
        ),
    )
    write_model(
        repository,
        "several",  # each segment's length, and the root of that less 2; other versions have a third output
        [
            node("Cast", ["lengths"], ["as_float"], to=FLOAT),
            node("Unsqueeze", ["as_float", "one"], ["y"]),
            node("Sub", ["y", "two"], ["shifted"]),
            node("Sqrt", ["shifted"], ["root"]),
        ],
        [value("x", FLOAT, "n"), value("lengths", INT32, "m")],
        [value("y", FLOAT, "m", 1), value("root", FLOAT, "m", 1)],
        CHUNKED.replace("-1, 3", "-1, 1")
        + """output [ { name: "root" data_type: TYPE_FP32 dims: [ -1, 1 ] },
                     { name: "absent" data_type: TYPE_FP32 dims: [ -1, 7 ] } ]
        batch_output [ { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "root" source_input: "lengths" },
                       { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "absent" source_input: "lengths" } ]
        parameters { key: "optional_outputs" value { string_value: "other absent" } }""",
        (onnx.numpy_helper.from_array(np.array([1]), "one"), onnx.numpy_helper.from_array(np.float32(2), "two")),
    )
    for data_type, kind in (("UINT8", TensorProto.UINT8), ("FP16", TensorProto.FLOAT16), ("BOOL", TensorProto.BOOL)):
        write_model(
            repository,
            f"unbatched_{data_type.lower()}",
            [node("Identity", ["x"], ["y"])],
            [value("x", kind, "n")],
            [value("y", kind, "n")],
            f"""max_batch_size: 0 input {{ name: "x" data_type: TYPE_{data_type} dims: [ -1 ] }}
            output {{ name: "y" data_type: TYPE_{data_type} dims: [ -1 ] }}""",
        )
    write_model(
        repository,
        "nan",  # y = log(x)
        [node("Log", ["x"], ["y"])],
        [value("x", FLOAT, "n", 1)],
        [value("y", FLOAT, "n", 1)],
        """max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 200000 }
        input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
        parameters { key: "nan_is_error" value { string_value: "true" } }""",
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder)
    with (folder.parent / "triton.log").open("wb") as log, Server(folder, Addresses.free(), log=log) as server:
        yield server


@pytest.fixture(scope="module")
def server(running: Server) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(running.addresses.grpc)


def ask(server: triton.InferenceServerClient, model: str, output: str = "y", **arrays: np.ndarray) -> np.ndarray:
    inputs = []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return server.infer(model, inputs).as_numpy(output)


def ask_for(server: triton.InferenceServerClient, outputs: list[str], request: dict) -> dict[str, np.ndarray]:
    """What `several` answers to a request for these outputs."""
    inputs = []
    for name, array in request.items():
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    answer = server.infer("several", inputs, outputs=[triton.InferRequestedOutput(name) for name in outputs])
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def ask_at_once(server: triton.InferenceServerClient, model: str, output: str, asked: list[dict]) -> list:
    """Sends all requests at the same time; the queue delay of the models above makes Triton merge them."""
    answers: list = [None] * len(asked)

    def run(index: int) -> None:
        try:
            answers[index] = ask(server, model, output, **asked[index])
        except InferenceServerException as exc:
            answers[index] = exc

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def ask_while_busy(running: Server, server: triton.InferenceServerClient, model: str, asked: list[dict]) -> list:
    """As `ask_at_once`, while no core is free: all requests that are not refused wait for the same chunks."""
    eventually(lambda: waiting_in_the_schedule(running, model) == 0)  # figures are published now and then
    with ThreadPoolExecutor(1) as pool:
        with busy_cores(running):
            answers = pool.submit(ask_at_once, server, model, "y", asked)
            sound = sum(each["lengths"].sum() == each["x"].size for each in asked)
            eventually(lambda: waiting_in_the_schedule(running, model) == sound)
        return answers.result()


def executions(server: triton.InferenceServerClient, model: str) -> tuple[int, int]:
    """How many executions there were, and for how many requests."""
    stats = server.get_inference_statistics(model).model_stats[0]
    return stats.execution_count, stats.inference_count


def test_plain_batched_inputs_are_merged_and_split(server) -> None:
    asked = [{"x": np.full((size, 3), size, dtype=np.float32)} for size in (1, 2, 1, 3)]
    before = executions(server, "plain")
    for request, answer in zip(asked, ask_at_once(server, "plain", "y", asked), strict=True):
        assert np.array_equal(answer, request["x"] * 2)
    eventually(lambda: executions(server, "plain")[1] - before[1] == 1 + 2 + 1 + 3)  # Triton counts behind the answers
    assert executions(server, "plain")[0] - before[0] < len(asked)


def ragged(values: list[int], index: list[int]) -> dict:
    return {"x": np.array([values], dtype=np.int64), "index": np.array([index], dtype=np.int32)}


def test_ragged_inputs_are_laid_end_to_end_and_each_gets_its_own_rows_back(server) -> None:
    # Indices count over the merged batch, so a request alone (or first) must answer with its own values.
    assert ask(server, "ragged", "picked", **ragged([10, 20, 30], [2, 0])).tolist() == [[[30], [10]]]
    answers = ask_at_once(server, "ragged", "picked", [ragged([5] * size, [0] * size) for size in (1, 2, 3, 4)])
    assert [answer.tolist() for answer in answers] == [[[[5]] * size] for size in (1, 2, 3, 4)]


def test_one_bad_request_in_a_merged_batch_fails_alone(server) -> None:
    before = executions(server, "ragged")[0]
    asked = [ragged([5, 5], [1]), ragged([5, 5], [1000]), ragged([5, 5, 5], [0])]
    good, bad, other = ask_at_once(server, "ragged", "picked", asked)
    assert good.tolist() == other.tolist() == [[[5]]]
    assert isinstance(bad, InferenceServerException)
    assert "INVALID_ARGUMENT" in str(bad.status())
    assert "cannot be executed on this request" in bad.message()
    assert executions(server, "ragged")[0] - before < 3  # they were merged


@pytest.mark.parametrize("empty", ["x", "index"])
def test_a_request_without_elements_is_refused_before_it_is_merged(server, empty: str) -> None:
    """Triton's C++ backends would leave out the requests behind it."""
    good = {"x": np.array([[5]]), "index": np.zeros((1, 1), np.int32)}
    asked = [good, good | {empty: good[empty][:, :0]}, good]
    one, bad, two = ask_at_once(server, "ragged", "picked", asked)
    assert one.tolist() == two.tolist() == [[[5]]]
    assert f"malformed request: input '{empty}' has no elements" in bad.message()


def segments(lengths: list[int], first: float = 1.0) -> dict:
    values = np.full((1, sum(lengths)), first, dtype=np.float32)
    return {"x": values, "lengths": np.array([lengths], dtype=np.int32)}


def test_segments_are_computed_in_chunks_of_similar_length_and_come_back_in_order(server) -> None:
    answer = ask(server, "chunked", **segments([9, 2, 10, 3, 2, 1]))[0]
    assert answer[:, 0].tolist() == [9, 2, 10, 3, 2, 1]
    assert answer[:, 1].tolist() == [1, 4, 1, 4, 4, 4]  # 4 x 3 elements fit the budget of 12; 9 and 10 are alone
    assert np.array_equal(answer[:, 2], np.zeros(6))


@needs_bound_cores
def test_small_requests_share_a_chunk_and_each_gets_its_own_segments_back(running, server) -> None:
    asked = [segments([2, 3], first) for first in (1.0, 2.0)] + [segments([40, 1, 12], 3.0)]
    one, two, large = (answer[0] for answer in ask_while_busy(running, server, "chunked", asked))
    assert one[:, 0].tolist() == two[:, 0].tolist() == [2, 3]
    assert one[:, 1].tolist() == two[:, 1].tolist() == [4, 4]
    assert large[:, 0].tolist() == [40, 1, 12]
    assert large[:, 1].tolist() == [1, 1, 1]
    for answer, first in ((one, 1.0), (two, 2.0), (large, 3.0)):
        assert np.allclose(answer[:, 2], np.log(first))


@needs_bound_cores
def test_a_bad_request_fails_alone_where_chunks_mix_requests(running, server) -> None:
    wrong_sum = segments([2, 3]) | {"lengths": np.array([[2, 4]], dtype=np.int32)}
    asked = [
        segments([2, 3], 2.0),
        segments([3, 2], -1.0),
        segments([1]),
        wrong_sum,
        wrong_sum | {"x": np.zeros((1, 0), np.float32)},
    ]
    good, not_a_number, small, does_not_add_up, empty = ask_while_busy(running, server, "chunked", asked)
    assert good[0][:, 0].tolist() == [2, 3]
    assert max(good[0][:, 1]) > 2 or small[0][0, 1] > 1, "they shared no chunk"
    assert small[0][:, 0].tolist() == [1]
    assert "malformed request: chunked answered NaN" in not_a_number.message()
    assert "malformed request: 'lengths' adds up to 6, but 'x' has 5 elements" in does_not_add_up.message()
    assert "malformed request: input 'x' has no elements" in empty.message()


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ([], ["root", "y"]),
        (["y"], ["y"]),
        (["root"], ["root"]),
        (["root", "y"], ["root", "y"]),
        (["absent", "root"], ["root"]),
        (["absent"], []),
    ],
    ids=str,
)
def test_a_request_gets_the_outputs_that_it_asks_for(server, asked: list[str], answered: list[str]) -> None:
    answer = ask_for(server, asked, segments([6, 38, 3]))
    assert sorted(answer) == answered
    right = {"y": [6, 38, 3], "root": [2, 6, 1]}
    assert all(answer[name][0, :, 0].tolist() == right[name] for name in answered)


def test_merged_requests_get_each_their_own_outputs(server) -> None:
    lengths, asked = [[6, 3], [6, 11, 3], [11, 6], [3, 1]], [["y"], ["root"], [], ["y"]]
    before = executions(server, "several")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda names, own: ask_for(server, names, segments(own)), asked, lengths))
    eventually(lambda: executions(server, "several")[1] - before[1] >= 4)
    after = executions(server, "several")
    assert after[0] - before[0] < after[1] - before[1], "some were merged"
    assert [set(answer) for answer in answers] == [{"y"}, {"root"}, {"y", "root"}, {"y"}]
    for answer, own in zip(answers, lengths, strict=True):
        for name, values in answer.items():
            expected = own if name == "y" else np.sqrt(np.array(own, np.float32) - 2)
            assert np.allclose(values[0, :, 0], expected)


def test_what_another_output_would_be_harms_no_request_that_does_not_ask_for_it(server) -> None:
    """The root of a length below 2 is NaN."""
    assert ask_for(server, ["y"], segments([1]))["y"].tolist() == [[[1]]]
    with pytest.raises(InferenceServerException, match="malformed request"):
        ask_for(server, [], segments([1]))


@pytest.mark.parametrize(
    ("model", "array"),
    [
        ("unbatched_uint8", np.array([0, 255, 7], dtype=np.uint8)),
        ("unbatched_fp16", np.array([0.5, -2], dtype=np.float16)),
        ("unbatched_bool", np.array([True, False, True])),
        ("unbatched_uint8", np.zeros(2_000_000, dtype=np.uint8)),
    ],
)
def test_models_without_batching_and_other_types(server, model: str, array: np.ndarray) -> None:
    answer = ask(server, model, x=array)
    assert answer.dtype == array.dtype
    assert np.array_equal(answer, array)


def test_nan_is_an_error_of_its_own_request_where_the_config_says_so(server) -> None:
    numbers = [np.array([[number]], dtype=np.float32) for number in (1, -1, 2)]
    one, bad, two = ask_at_once(server, "nan", "y", [{"x": number} for number in numbers])
    assert one[0, 0] == 0
    assert two[0, 0] == pytest.approx(np.log(2))
    assert "malformed request" in bad.message()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('input { name: "x" data_type: TYPE_STRING dims: [ 3 ] }', "x is TYPE_STRING"),
        (
            'input { name: "other" data_type: TYPE_FP32 dims: [ 3 ] }',
            "config.pbtxt has the inputs ['other'], the graph ['x']",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } optimization { execution_accelerators { '
            'cpu_execution_accelerator: [ { name: "openvino" } ] } }',
            "execution_accelerators",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } '
            'parameters { key: "chunk_by" value { string_value: "x" } }',
            "chunk_by 'x' (it needs chunk_elements",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused_at_the_start(tmp_path: Path, config: str, message: str) -> None:
    outputs = 'max_batch_size: 8 output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }\n'
    add = helper.make_node("Add", ["x", "x"], ["y"])
    inputs, results = [value("x", FLOAT, "n", 3)], [value("y", FLOAT, "n", 3)]
    write_model(tmp_path / "repository", "model", [add], inputs, results, outputs + config)
    with (
        (tmp_path / "log").open("wb") as log,
        pytest.raises(ServingError, match=f"before it was ready.*{log.name}"),
        Server(tmp_path / "repository", Addresses.free(), log=log),
    ):
        pass
    assert message in (tmp_path / "log").read_text()
