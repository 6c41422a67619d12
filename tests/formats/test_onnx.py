"""ONNX: tensors of real models are found with their bytes, in the file and beside it; growing files; limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arzstream.formats import protobuf
from arzstream.formats.base import Layout, Malformed, Storage, problem_of
from arzstream.formats.companions import Companions, place_of
from arzstream.formats.detect import parser_for
from arzstream.formats.onnx import DTYPE_OF, OnnxParser

Whole = Callable[..., Layout]
Grow = Callable[..., list[Layout]]
RNG = np.random.default_rng(0)


def model(initializers: list[TensorProto], nodes: list[onnx.NodeProto] | None = None, **more: object) -> bytes:
    graph = helper.make_graph(nodes or [], "g", [], [], initializer=initializers, **more)
    return bytes(helper.make_model(graph, producer_name="test").SerializeToString())


def named(layout: Layout) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    return {view.name: (s.dtype, view.shape, s.offset, s.end) for s in layout.storages for view in s.views}


def check(data: bytes, layout: Layout, expected: dict[str, bytes]) -> None:
    found = {name: data[start:end] for name, (_, _, start, end) in named(layout).items()}
    assert found == expected


def test_initializers_of_every_type_are_found_in_raw_data(whole: Whole) -> None:
    tensors, expected, shapes = [], {}, {}
    for kind, dtype in DTYPE_OF.items():
        array = RNG.integers(0, 2, (3, 4)).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor = helper.make_tensor(dtype, kind, array.shape, array.tobytes(), raw=True)
        tensors.append(tensor)
        expected[dtype], shapes[dtype] = array.tobytes(), array.shape
    layout = whole(data := model(tensors), "m.onnx")
    check(data, layout, expected)
    assert layout.format == "onnx" and layout.note == ""
    assert all((dtype, shape) == (name, (3, 4)) for name, (dtype, shape, _, _) in named(layout).items())


def test_packed_floats_and_doubles_are_found_and_other_numbers_are_not(whole: Whole) -> None:
    values = RNG.standard_normal(2000)
    tensors = [
        helper.make_tensor("f", TensorProto.FLOAT, [20, 100], values.astype(np.float32)),
        helper.make_tensor("d", TensorProto.DOUBLE, [2000], values),
        helper.make_tensor("c", TensorProto.COMPLEX64, [1000], values[:1000].astype(np.complex64)),
        helper.make_tensor("h", TensorProto.FLOAT16, [2000], values.astype(np.float16)),
        helper.make_tensor("i", TensorProto.INT32, [2000], RNG.integers(0, 1 << 30, 2000)),
    ]
    layout = whole(data := model(tensors), "m.onnx")
    check(
        data,
        layout,
        {"f": values.astype("<f4").tobytes(), "d": values.tobytes(), "c": values[:1000].astype("<c8").tobytes()},
    )
    assert "'h' is written as numbers of varying length" in layout.note and "'i'" in layout.note


def test_four_bit_types_are_bytes(whole: Whole) -> None:
    array = RNG.integers(-8, 8, (5, 5)).astype(ml_dtypes.int4)
    tensor = numpy_helper.from_array(array, "q")
    layout = whole(data := model([tensor]), "m.onnx")
    check(data, layout, {"q": tensor.raw_data})
    assert named(layout)["q"][:2] == ("U8", (13,)) and "INT4" in layout.note


def test_graphs_in_nodes_functions_constants_and_sparse_tensors_are_found(whole: Whole) -> None:
    def weights(seed: int, n: int = 400) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(n).astype(np.float32)

    inner = [numpy_helper.from_array(weights(i), "w") for i in range(2)]
    branches = [helper.make_graph([], f"b{i}", [], [], initializer=[inner[i]]) for i in range(2)]
    body = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], name="deep", then_branch=branches[1])], "body", [], [],
        initializer=[inner[0]],
    )  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(weights(3))),
        helper.make_node("Constant", [], ["small"], value=numpy_helper.from_array(weights(3, 4))),
        helper.make_node("Loop", ["n"], ["z"], name="loop", body=body),
    ]
    function = helper.make_function(
        "domain", "f", ["x"], ["y"],
        [helper.make_node("Constant", [], ["of function"], value=numpy_helper.from_array(weights(5)))],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    values, places = numpy_helper.from_array(weights(6), "sparse"), numpy_helper.from_array(np.arange(400))
    graph = helper.make_graph(
        nodes, "g", [], [], sparse_initializer=[helper.make_sparse_tensor(values, places, [9999])]
    )
    data = helper.make_model(graph, functions=[function], producer_name="test").SerializeToString()
    layout = whole(data, "m.onnx")
    expected = {
        "constant": weights(3), "loop/body/w": weights(0), "loop/body/deep/then_branch/w": weights(1),
        "f/of function": weights(5), "sparse": weights(6), "sparse.indices": np.arange(400),
    }  # fmt: skip
    check(data, layout, {name: array.tobytes() for name, array in expected.items()})


def test_graphs_nested_too_deeply_make_the_file_opaque(whole: Whole) -> None:
    graph = helper.make_graph([], "g", [], [], initializer=[numpy_helper.from_array(np.ones(999), "w")])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    layout = whole(helper.make_model(graph).SerializeToString(), "m.onnx")
    assert layout.format == "opaque" and "nested too deeply" in layout.note


def test_a_growing_model_is_coded_as_it_lands(grow: Grow, whole: Whole) -> None:
    tensors = [numpy_helper.from_array(RNG.standard_normal(n).astype(np.float32), f"w{n}") for n in (300, 5, 700)]
    data = model(tensors)
    final = whole(data, "m.onnx")
    for frontier, layout in enumerate(grow(data, "m.onnx")):
        assert set(layout.storages) <= set(final.storages)
        assert layout.complete == (frontier == len(data))
        assert all(s in layout.storages for s in final.storages if s.offset <= frontier)


def test_what_grows_beside_the_graph_and_in_nodes_is_found_once(
    grow: Grow, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looking at it again and again, as it grows, does not use up the fields that may be looked at."""

    def weights(seed: int) -> TensorProto:
        return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(300).astype(np.float32), f"w{seed}")

    def node(seed: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [f"c{seed}"], value=weights(seed))

    body = helper.make_graph([node(i) for i in range(3)], "body", [], [], initializer=[weights(3), weights(4)])
    graph = helper.make_graph([helper.make_node("Loop", ["n"], ["z"], name="loop", body=body)], "g", [], [])
    inside = [node(i) for i in range(5, 8)]
    function = helper.make_function("domain", "f", ["x"], ["y"], inside, [helper.make_opsetid("", 20)])
    made = helper.make_model(graph, functions=[function], producer_name="test")
    made.training_info.add().algorithm.CopyFrom(
        helper.make_graph([], "t", [], [], initializer=[weights(8), weights(9)])
    )
    data = made.SerializeToString()
    final = whole(data, "m.onnx")
    assert len(final.storages) == 10
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 600)
    had: set[Storage] = set()
    for layout in grow(data, "m.onnx", [*range(0, len(data), 61), len(data)]):
        found = set(layout.storages)
        assert had <= found <= set(final.storages)
        had = found
    assert had == set(final.storages)


def test_a_model_is_known_without_its_name_and_other_files_are_not_taken_for_one(whole: Whole) -> None:
    data = model([numpy_helper.from_array(np.ones(9), "w")])
    assert whole(data, "blob").format == "onnx"
    assert whole(data, "model.onnx.tmp").format == "onnx"
    fake = b"\x08\x08\x12\x07pytorch" + bytes(range(100))
    assert whole(fake, "blob") == Layout("opaque", (), len(fake), True, "")
    early = parser_for("blob").update(lambda o, n: fake[o : o + n], len(fake), False)
    assert early.format == "opaque"  # or a daemon would wait for its rest


# ---- external data


def external(folder: Path, one_file: bool, name: str = "weights.bin") -> dict[str, bytes]:
    """Save a model whose data lies beside it; bytes of every file by its name."""
    arrays = {f"layers.{i}.w": RNG.standard_normal((30, 40)).astype(np.float32) for i in range(3)}
    graph = helper.make_graph(
        [], "g", [], [], initializer=[numpy_helper.from_array(array, key) for key, array in arrays.items()]
    )
    onnx.save_model(
        helper.make_model(graph), folder / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=one_file,
        location=name if one_file else None, size_threshold=0,
    )  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def layouts(files: dict[str, bytes], order: list[str]) -> dict[str, Layout]:
    companions = Companions()
    parsers = {name: parser_for(f"sub/{name}", companions=companions) for name in files}
    found = {}
    for _ in range(2):  # as a checkpoint is planned, and finished
        for name in order:
            data = files[name]
            found[name] = parsers[name].update(lambda o, n, d=data: d[o : o + n], len(data), True)
            assert problem_of(found[name], len(data)) == ""
    return found


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_is_understood_in_the_files_that_hold_it(tmp_path: Path, one_file: bool) -> None:
    files = external(tmp_path, one_file)
    for order in (sorted(files), sorted(files, reverse=True)):
        found = layouts(files, order)
        data_names = {name for name in files if name != "m.onnx"}
        assert {found[name].format for name in data_names} == {"onnx-data"}
        tensors = {
            view.name: files[name][s.offset : s.end]
            for name in data_names for s in found[name].storages for view in s.views
        }  # fmt: skip
        loaded = onnx.load(tmp_path / "m.onnx")
        assert tensors == {t.name: numpy_helper.to_array(t).tobytes() for t in loaded.graph.initializer}


def test_tied_external_tensors_are_views_of_the_same_bytes_and_overlaps_are_left_out() -> None:
    companions = Companions()

    def tensor(name: str, offset: int, length: int) -> TensorProto:
        made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[length // 4])
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "d"), ("offset", str(offset)), ("length", str(length))):
            made.external_data.add(key=key, value=value)
        return made

    data = model([tensor("a", 0, 400), tensor("tied", 0, 400), tensor("over", 200, 400), tensor("far", 9000, 400)])
    OnnxParser("m.onnx", companions).update(lambda o, n: data[o : o + n], len(data), True)
    layout = companions.layout("d", 1000)
    assert layout is not None
    assert [[view.name for view in storage.views] for storage in layout.storages] == [["a", "tied"]]
    assert "'over' overlaps" in layout.note and "'far' lies beyond its end" in layout.note
    assert companions.layout("other", 1000) is None


@pytest.mark.parametrize("location", ["../d", "/etc/passwd", "", "a/../../d", "."])
def test_locations_that_lead_out_of_the_checkpoint_are_refused(location: str) -> None:
    with pytest.raises(Malformed):
        place_of("m.onnx", location)
    assert place_of("sub/m.onnx", "x/./d") == "sub/x/d"
