"""The daemon on buckets: every checkpoint archived exactly once, whatever is killed, refused or cut off meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import arzstream
from arzstream.daemon.bucket import home_of
from arzstream.daemon.journal import Entry, Journal
from arzstream.store.backends import connect
from arzstream.store.local import is_temporary
from arzstream.store.publishing import NewObject
from arzstream.testing import process, tensors
from arzstream.testing.proxy import Around, Fault, FaultProxy, Request, Reset, Stall, Status, Truncate
from arzstream.testing.servers import Server

from .test_remote_archives import aws

MIB = 1 << 20
OPTIONS = ("--quiet-time", "0.3", "--rescan", "1")
Run = Callable[[int], dict[str, bytes]]


@pytest.fixture(scope="module")
def run() -> Run:
    """The files of step N of one training run, each step near the one before."""
    steps = [tensors.model(layers=2, width=128, vocabulary=512)]

    def files(step: int) -> dict[str, bytes]:
        while len(steps) <= step:
            steps.append(tensors.trained(steps[-1], seed=len(steps)))
        return {"config.json": b"{}", "model.safetensors": tensors.safetensors_bytes(steps[step])}

    return files


class Bucket:
    """A folder of moto's bucket, looked at directly, whatever the daemon goes through."""

    def __init__(self, server: Server, name: str, home: Path) -> None:
        self.server, self.url = server, f"{server.url}/{name}"
        self.env = {"XDG_STATE_HOME": str(home)}
        self._store, self._key = connect(self.url, server.storage_options)

    def daemon(self, source: Path | str, *options: str, port: int = 0, home: Path | None = None) -> process.Daemon:
        env = {**aws(port or self.server.port), **self.env, **({"XDG_STATE_HOME": str(home)} if home else {})}
        return process.Daemon(str(source), self.url, *OPTIONS, *options, env=env)

    def names(self) -> list[str]:
        return sorted(name for name, _ in self._store.names(self._key, deep=True))

    def archives(self) -> list[str]:
        return [name for name in self.names() if not is_temporary(name.rpartition("/")[2])]

    def unfinished(self) -> list[str]:
        return list(self._store.unfinished(self._key))

    def verify(self, name: str, against: Path | str) -> None:
        arzstream.verify(
            f"{self.url}/{name}", deep=True, against=str(against), storage_options=self.server.storage_options
        )

    def entries(self) -> dict[bytes, Entry]:
        with Journal.read(home_of(self.url)) as journal:
            return journal.entries()


@pytest.fixture
def bucket(
    moto: Server, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield Bucket(moto, request.node.name, tmp_path / "state")


def land(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_checkpoints_go_to_a_bucket_as_chains_and_nothing_else_does(bucket: Bucket, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "source"
    land(source / "run" / "step-0", run(0))
    with bucket.daemon(source) as daemon:
        daemon.until(lambda: bucket.archives() == ["run/step-0.arz"], "step-0")
        for step in (1, 2):
            land(source / "run" / f"step-{step}", run(step))
            daemon.until(lambda step=step: f"run/step-{step}.arz" in bucket.archives(), f"step-{step}")
        (source / "run" / "step-2" / "model.safetensors").write_bytes(run(3)["model.safetensors"])
        daemon.until(lambda: "run/step-2.2.arz" in bucket.archives(), "step-2 once more")
    expected = ["run/step-0.arz", "run/step-1.arz", "run/step-2.2.arz", "run/step-2.arz"]
    assert bucket.names() == expected and bucket.unfinished() == []
    for step, name in ((0, "step-0"), (1, "step-1"), (2, "step-2.2")):
        bucket.verify(f"run/{name}.arz", source / "run" / f"step-{step}")
    with arzstream.open(f"{bucket.url}/run/step-1.arz", bucket.server.storage_options) as archive:
        assert [hint for hint, _ in archive.parents()] == ["step-0.arz"]
    assert [path.name for path in source.rglob(".arz*")] == []
    said = process.arzstream("status", bucket.url, env=bucket.env).stdout
    assert "step-2.2.arz" in said and f"→ {bucket.url}" in said


def test_a_checkpoint_that_is_renamed_into_another_folder_is_archived_there(
    bucket: Bucket, run: Run, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    staged, final = source / "staging" / "step-1", source / "step-1"
    data = run(1)["model.safetensors"]
    land(source / "step-0", run(0))
    with bucket.daemon(source) as daemon:
        daemon.until(lambda: bucket.archives() == ["step-0.arz"], "step-0")
        land(staged, {"model.safetensors": data[:-1000]})
        daemon.until(lambda: (e := bucket.entries().get(b"staging/step-1")) and e.bytes_coded, "some of it to be coded")
        staged.rename(final)
        with open(final / "model.safetensors", "ab") as file:
            file.write(data[-1000:])
        daemon.until(lambda: len(bucket.archives()) == 2, "step-1")
        daemon.until(lambda: bucket.entries()[b"step-1"].archive, "the journal to know it")
        assert bucket.entries()[b"step-1"].archive == "step-1.arz"
    assert bucket.names() == ["step-0.arz", "step-1.arz"] and bucket.unfinished() == []
    bucket.verify("step-1.arz", final)


def test_a_daemon_that_is_killed_anywhere_begins_again_and_archives_each_checkpoint_once(
    bucket: Bucket, run: Run, tmp_path: Path, proxies: Callable[[Server], FaultProxy]
) -> None:
    source, proxy = tmp_path / "source", proxies(bucket.server)
    for step in range(2):
        land(source / f"step-{step}", run(step))
    # Held up at: a part, reading back, the commit, removing the temporary object.
    moments: list[Callable[[Request], bool]] = [
        lambda r: r.method == "PUT" and "partNumber=1" in r.path and "x-amz-copy-source" not in r.headers,
        lambda r: r.method == "GET" and ".arz-tmp-" in r.path and "range" in r.headers,
        lambda r: r.method == "POST" and "uploadId=" in r.path and "if-none-match" in r.headers,
        lambda r: r.method == "DELETE" and ".arz-tmp-" in r.path,
    ]
    for moment in moments:
        proxy.script([Stall(5.0)], moment)
        with bucket.daemon(source, port=proxy.port) as daemon:
            daemon.until(lambda: not proxy.faults or len(bucket.archives()) == 2, "the moment")
            time.sleep(0.02)
            daemon.kill()
        for name in bucket.archives():
            bucket.verify(name, source / name.removesuffix(".arz"))
    proxy.script([])
    with bucket.daemon(source, "--once", port=proxy.port) as daemon:
        assert daemon.wait() == 0
    assert bucket.names() == ["step-0.arz", "step-1.arz"]
    assert [name for name in bucket.unfinished() if is_temporary(name)] == []
    for step in range(2):
        bucket.verify(f"step-{step}.arz", source / f"step-{step}")
    states = {os.fsdecode(path): (entry.state.value, entry.archive) for path, entry in bucket.entries().items()}
    assert states == {f"step-{step}": ("published", f"step-{step}.arz") for step in range(2)}


def test_a_store_that_misbehaves_gets_each_checkpoint_once(
    bucket: Bucket, run: Run, tmp_path: Path, proxies: Callable[[Server], FaultProxy]
) -> None:
    source, proxy = tmp_path / "source", proxies(bucket.server)
    for step in range(3):
        land(source / f"step-{step}", run(step))
    faults: list[Fault | None] = [Status(503), None, Reset(), None, Status(500), Truncate(0), None, Status(429), None]
    proxy.script(faults * 3)
    with bucket.daemon(source, "--once", port=proxy.port) as daemon:
        assert daemon.wait(120) == 0, daemon.output()
    assert not proxy.faults, "it met all of them"
    proxy.script([])
    assert bucket.names() == [f"step-{step}.arz" for step in range(3)]
    for step in range(3):
        bucket.verify(f"step-{step}.arz", source / f"step-{step}")


def test_of_two_daemons_one_archives_a_checkpoint_and_the_other_takes_note(
    bucket: Bucket, run: Run, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    homes = [tmp_path / "one", tmp_path / "two"]
    with bucket.daemon(source_of(source), home=homes[0]) as one, bucket.daemon(source, home=homes[1]) as two:
        for step in range(4):
            land(source / f"step-{step}", run(step))
            for daemon in (one, two):
                daemon.until(lambda step=step: f"step-{step}.arz" in bucket.archives(), f"step-{step}")
        for daemon in (one, two):
            daemon.until(lambda daemon=daemon: noted(daemon) == 4, "everybody to know")
        published = [daemon.output().count("event=published") for daemon in (one, two)]
    assert bucket.names() == [f"step-{step}.arz" for step in range(4)]
    assert sum(published) == 4
    for step in range(4):
        bucket.verify(f"step-{step}.arz", source / f"step-{step}")


def test_what_is_refused_one_name_may_be_given_another(bucket: Bucket) -> None:
    written = [NewObject(f"{bucket.url}/it.arz", bucket.server.storage_options) for _ in range(2)]
    for number, new in enumerate(written):
        new.write(b"%d" % number)
        new.complete()
    written[0].publish(name="it.arz")
    with pytest.raises(arzstream.StorageError, match="exists already"):
        written[1].publish(name="it.arz")
    written[1].publish(name="it.2.arz")
    assert bucket.names() == ["it.2.arz", "it.arz"]


class Upstream:
    """Another folder of the bucket, which a training run saves to."""

    def __init__(self, bucket: Bucket) -> None:
        self.url = f"{bucket.url}-in"
        self._store, self._key = connect(self.url, bucket.server.storage_options)

    def put(self, name: str, data: bytes) -> None:
        upload = self._store.upload(f"{self._key}/{name}")
        upload.part(0, memoryview(data), True)
        upload.finish()

    def remove(self, name: str) -> None:
        self._store.remove(f"{self._key}/{name}")

    def land(self, folder: str, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.put(f"{folder}/{name}", data)


def restored(bucket: Bucket, name: str, into: Path) -> dict[str, bytes]:
    arzstream.unpack(f"{bucket.url}/{name}", into, storage_options=bucket.server.storage_options)
    return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}


def test_a_run_that_saves_to_a_bucket_is_archived_in_another_though_killed_and_badly_served(
    bucket: Bucket, run: Run, tmp_path: Path, proxies: Callable[[Server], FaultProxy]
) -> None:
    source, proxy, scratch = Upstream(bucket), proxies(bucket.server), tmp_path / "scratch"
    scratch.mkdir()
    bucket.env["TMPDIR"] = str(scratch)
    faults: list[Fault | None] = [None, Status(503), None, None, Reset(), None, Truncate(10), None, Status(429), None]
    source.land("run/step-0", run(0))
    for step in range(3):
        proxy.script(faults * 2)
        with bucket.daemon(source.url, port=proxy.port) as daemon:
            if step:
                source.put(f"run/step-{step}/config.json", run(step)["config.json"])
                source.put(f"run/step-{step}/model.safetensors", run(step)["model.safetensors"])
            if step == 1:
                daemon.until(lambda: daemon.output().count("checkpoint=run/step-1") > 1, "step-1 to be begun")
                time.sleep(0.3)
                daemon.kill()
            else:
                daemon.until(lambda step=step: f"run/step-{step}.arz" in bucket.archives(), f"step-{step}")
                daemon.until(lambda step=step: done(bucket, f"run/step-{step}"), f"step-{step} to be written down")
    assert bucket.names() == [f"run/step-{step}.arz" for step in range(3)] and bucket.unfinished() == []
    for step in range(3):
        assert restored(bucket, f"run/step-{step}.arz", tmp_path / f"step-{step}") == run(step)
    kept = [path for root in (scratch, tmp_path / "state") for path in root.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in kept) < 200_000  # the journal, and no copy of anything
    with arzstream.open(f"{bucket.url}/run/step-2.arz", bucket.server.storage_options) as archive:
        assert archive.parents()[0][0] == "step-1.arz"


def done(bucket: Bucket, path: str) -> bool:
    entry = bucket.entries().get(os.fsencode(path))
    return entry is not None and entry.state.value == "published"


def test_an_object_that_is_replaced_while_it_is_read_is_archived_as_it_is_in_the_end(
    bucket: Bucket, run: Run, tmp_path: Path, proxies: Callable[[Server], FaultProxy]
) -> None:
    source, proxy = Upstream(bucket), proxies(bucket.server)
    source.land("model", run(0))
    proxy.script(
        [Around(after=lambda: source.put("model/model.safetensors", run(1)["model.safetensors"]))],
        lambda r: r.method == "GET" and "-in/model/model.safetensors" in r.path and "range" in r.headers,
    )
    with bucket.daemon(source.url, port=proxy.port) as daemon:
        daemon.until(lambda: "model.arz" in bucket.archives(), "the archive")
        daemon.until(lambda: done(bucket, "model"), "it to be written down")
    assert bucket.names() == ["model.arz"]
    assert restored(bucket, "model.arz", tmp_path / "out") == run(1)


def test_what_lies_in_a_bucket_is_archived_in_a_folder_and_not_again_by_the_next_daemon(
    bucket: Bucket, run: Run, tmp_path: Path
) -> None:
    source, dest = Upstream(bucket), tmp_path / "dest"
    source.land("run/step-0", run(0))
    source.put("lone.safetensors", run(1)["model.safetensors"])
    env = aws(bucket.server.port)
    for lost in (False, False, True):
        if lost:
            shutil.rmtree(dest / ".arzstream")
        done = process.arzstream("watch", source.url, dest, "--once", *OPTIONS, env=env)
        assert done.returncode == 0 and "2 checkpoints archived" in done.stdout, done.stderr
        assert process.leftovers(dest, ["lone.safetensors.arz", "run/step-0.arz"]) == []
    arzstream.unpack(dest / "run/step-0.arz", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == run(0)


def test_objects_of_the_same_lengths_as_before_are_not_taken_for_the_old_ones(
    bucket: Bucket, run: Run, tmp_path: Path
) -> None:
    """Objects have no times that one could go by: written again is what has another version."""
    source, dest = Upstream(bucket), tmp_path / "dest"
    files = [{"model.safetensors": run(step)["model.safetensors"], "optimizer.pt": b"state"} for step in (0, 1)]
    for folder in ("again", "final"):
        source.land(folder, files[0])
    with process.Daemon(source.url, str(dest), *OPTIONS, env={**aws(bucket.server.port), **bucket.env}) as daemon:
        daemon.until(lambda: (dest / "again.arz").exists() and (dest / "final.arz").exists(), "both")
        source.land("again", {**files[1], "optimizer.pt": b"a longer state"})
        source.remove("final/optimizer.pt")
        source.put("final/model.safetensors", files[1]["model.safetensors"])
        daemon.until((dest / "again.2.arz").exists, "the one that was written over", 30)
        daemon.until((dest / "final.2.arz").exists, "the one without an optimizer", 30)
        assert "to be written again" not in daemon.output()
    arzstream.unpack(dest / "again.2.arz", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == files[1]["model.safetensors"]
    arzstream.unpack(dest / "final.2.arz", tmp_path / "final")
    assert {path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()} == {
        "model.safetensors": files[1]["model.safetensors"]
    }


def source_of(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def noted(daemon: process.Daemon) -> int:
    """Checkpoints that it has published, or knows to be."""
    return len(set(re.findall(r"event=(?:published|recognised) checkpoint=(\S+)", daemon.output())))
