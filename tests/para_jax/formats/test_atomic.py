"""Test that a directory is replaced atomically, whatever is killed and when."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

import para_jax as para
from para_jax.formats import atomic

pytestmark = [
    pytest.mark.user_defaults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks"),
]

# Starting Python takes a second, a fork a millisecond: one process forks a child an
# order, and the child is killed, by the clock or by itself.
SERVER = """
import json, os, pathlib, signal, sys, time

import para_jax as para
from para_jax.formats import atomic, flush
from para_jax.formats.orbax import checkpoint
from para_jax.formats.peft import folder

ADAPTERS = [para.load(x) for x in sys.argv[1:]]


def kill_at_line(number):
    count = 0

    def each(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in (atomic.__file__, flush.__file__):
            return None
        if event == "line":
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return each

    sys.settrace(each)


def kill_after_rename(number):
    rename, count = os.rename, 0

    def counted(*arguments, **keywords):
        nonlocal count
        rename(*arguments, **keywords)
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.rename = counted


def child(target, format="peft", *, saves=[1], line=0, rename=0, exchange=True):
    if not exchange:  # As on a file system without it.
        atomic._exchange = lambda one, two: False
    if line:
        kill_at_line(line)
    if rename:
        kill_after_rename(rename)
    start = time.perf_counter()
    for i in saves:
        para.save(ADAPTERS[i], target, format=format, overwrite=True)
    sys.settrace(None)
    pathlib.Path(target + ".seconds").write_text(str(time.perf_counter() - start))


def forked(order):
    pid = os.fork()
    if pid:
        return pid
    try:
        child(**order)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


for text in sys.stdin:
    orders = json.loads(text)
    delays = [order.pop("kill_after", None) for order in orders]
    pids = [forked(order) for order in orders]
    for pid, delay in zip(pids, delays):
        if delay is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""
KILLED = -9


def checkpoint(rank, seed):
    """Return one of two adapters that differ in every stored value."""
    rng = np.random.default_rng(seed)
    return para.Checkpoint(
        adapters={
            f"layer/{i}/q": para.Adapter(
                a=rng.normal(size=(40 + i, rank)).astype(np.float32),
                b=rng.normal(size=(rank, 30)).astype(np.float32),
            )
            for i in range(2 + rank)
        },
        extra={"classifier.weight": rng.normal(size=(2, 30)).astype(np.float32)},
        config={"peft_type": "LORA", "task_type": "SEQ_CLS", "revision": str(rank)},
    )


OLD, NEW = checkpoint(3, 0), checkpoint(5, 1)


class Forks:
    """Save adapters in other processes; return their exit status."""

    def __init__(self, process):
        self._process = process

    def save_together(self, *orders):
        self._process.stdin.write(json.dumps(orders, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def save(self, target, **order):
        (code,) = self.save_together({"target": target, **order})
        return code

    def seconds(self, target, **order):
        """Return the duration of an uninterrupted save."""
        assert self.save(target, **order) == 0
        marker = pathlib.Path(f"{target}.seconds")
        seconds = float(marker.read_text())
        marker.unlink()
        return seconds


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    sources = []
    for name, source in (("old", OLD), ("new", NEW)):
        sources.append(tmp_path_factory.mktemp("source") / name)
        para.save(source, sources[-1])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, *sources],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A fork has one thread, whatever else its parent had.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    with process:
        yield Forks(process)
        process.stdin.close()


@pytest.fixture
def target(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "adapter"


def beside(target):
    return sorted(x.name for x in target.parent.iterdir())


def same(one, two):
    """Return whether two checkpoints hold the same, bit for bit."""
    trees = [
        {(p, k): getattr(x, k) for p, x in c.adapters.items() for k in ("a", "b")}
        | {name.removeprefix("base_model.model."): x for name, x in c.extra.items()}
        for c in (one, two)
    ]
    return trees[0].keys() == trees[1].keys() and all(
        np.array_equal(x, trees[1][name]) for name, x in trees[0].items()
    )


def which(target):
    """Return which of the two adapters is there; fail on a mixture."""
    found = para.load(target)
    revision = found.config["revision"]
    assert same(found, {"3": OLD, "5": NEW}[revision])
    return {"3": "old", "5": "new"}[revision]


def fill(folder, text="new"):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(text)
    (folder / "adapter_model.safetensors").write_text(text)


def replace(target, write, *, overwrite=False):
    """Replace a directory by a new one filled by `write`."""
    with atomic.replacing(target, overwrite=overwrite) as new:
        write(new)


def read(folder):
    return {x.name: x.read_text() for x in folder.iterdir()}


def without_exchange(monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda one, two: False)


# Killed


def test_killed_at_twenty_random_moments_the_old_or_the_new_is_there(forks, target):
    para.save(OLD, target)
    first = forks.seconds(target, saves=[0])  # A fork is slow at the start.
    lasts = (forks.seconds(target, saves=[0] + [1, 0] * 10) - first) / 20
    seeded = random.Random(7)
    moments = [seeded.uniform(0, 2 * first) for _ in range(6)]
    # Many saves later any phase of a save is as likely.
    moments += [first + seeded.uniform(0, max(0.2, 12 * lasts)) for _ in range(14)]

    seen, leftovers = [], 0
    for moment in moments:
        assert forks.save(target, kill_after=moment, saves=[1, 0] * 5000) == KILLED
        leftovers += beside(target) != ["adapter"]
        seen.append(which(target))
        assert len(beside(target)) <= 2  # Nothing piles up.

    # The moments did hit both sides of the replacement.
    assert set(seen) == {"old", "new"}
    assert leftovers
    para.save(OLD, target, overwrite=True)
    assert beside(target) == ["adapter"]
    assert which(target) == "old"


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_killed_at_any_line_the_old_or_the_new_is_there(
    forks, target, monkeypatch, exchange
):
    if not exchange:
        without_exchange(monkeypatch)
    seen, line, code = [], 0, KILLED
    while code == KILLED:
        line += 1
        para.save(OLD, target, overwrite=True)
        assert beside(target) == ["adapter"], f"left by a kill at line {line - 1}"
        code = forks.save(target, line=line, exchange=exchange)
        seen.append(which(target))
    pathlib.Path(f"{target}.seconds").unlink()

    assert code == 0
    assert line > 40
    # From one line on it is the new one, and there are lines on both sides.
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


@pytest.mark.slow
def test_killed_at_any_line_of_a_first_save_nothing_or_all_is_there(forks, target):
    seen, line, code = [], 0, KILLED
    while code == KILLED:
        line += 1
        shutil.rmtree(target, ignore_errors=True)
        code = forks.save(target, line=line)
        seen.append(which(target) if target.exists() else "")
        para.save(OLD, target, overwrite=True)
        pathlib.Path(f"{target}.seconds").unlink(missing_ok=True)
        assert beside(target) == ["adapter"], f"left by a kill at line {line}"

    assert code == 0
    assert seen == sorted(seen)
    assert set(seen) == {"", "new"}


@pytest.mark.slow
def test_killed_while_orbax_writes_the_old_or_the_new_is_there(forks, target):
    para.save(OLD, target, format="orbax")
    order = {"format": "orbax"}
    first = forks.seconds(target, saves=[0], **order)
    lasts = (forks.seconds(target, saves=[1, 0] * 3, **order) - first) / 5
    seeded = random.Random(3)

    for _ in range(6):
        moment = first + seeded.uniform(-0.5, 3) * lasts
        code = forks.save(target, kill_after=moment, saves=[1, 0] * 100, **order)
        assert code == KILLED
        which(target)

    para.save(NEW, target, format="orbax", overwrite=True)
    assert which(target) == "new"
    assert beside(target) == ["adapter"]


# The fallback of two renames


def test_killed_between_the_two_renames_the_next_load_finds_the_old(forks, target):
    para.save(OLD, target)
    assert forks.save(target, exchange=False, rename=1) == KILLED
    assert not target.exists()

    assert which(target) == "old"


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_killed_between_the_two_renames_the_next_save_succeeds(
    forks, target, monkeypatch, exchange
):
    if not exchange:
        without_exchange(monkeypatch)
    para.save(OLD, target)
    assert forks.save(target, exchange=False, rename=1) == KILLED

    with pytest.raises(FileExistsError, match="exists"):
        para.save(NEW, target)
    assert which(target) == "old"
    para.save(NEW, target, overwrite=True)
    assert which(target) == "new"
    assert beside(target) == ["adapter"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_killed_after_the_second_rename_the_next_save_succeeds(
    forks, target, monkeypatch, exchange
):
    if not exchange:
        without_exchange(monkeypatch)
    para.save(OLD, target)
    assert forks.save(target, exchange=False, rename=2) == KILLED
    assert which(target) == "new"

    para.save(OLD, target, overwrite=True)
    assert which(target) == "old"
    assert beside(target) == ["adapter"]


def test_what_was_replaced_does_not_come_back_when_its_successor_is_deleted(
    forks, target
):
    para.save(OLD, target)
    assert forks.save(target, exchange=False, rename=2) == KILLED
    assert which(target) == "new"
    para.save(NEW, target, overwrite=True)
    shutil.rmtree(target)

    with pytest.raises(FileNotFoundError, match="adapter' does not exist"):
        para.load(target)


def test_recovery_reads_from_the_weights_themselves(forks, target):
    para.save(OLD, target)
    assert forks.save(target, exchange=False, rename=1) == KILLED

    assert which(target / "adapter_model.safetensors") == "old"


def test_without_the_exchange_nothing_is_left(target, monkeypatch):
    without_exchange(monkeypatch)
    for source in (OLD, NEW, OLD):
        para.save(source, target, overwrite=True)

        assert which(target) == ("old" if source is OLD else "new")
        assert beside(target) == ["adapter"]


def test_without_the_exchange_a_failed_second_rename_puts_the_old_back(
    target, monkeypatch
):
    without_exchange(monkeypatch)
    fill(target, "old")
    rename = os.rename

    def fails_once(one, two):
        if ".para-new-" in str(one):
            raise OSError(5, "Input/output error", str(one))
        rename(one, two)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(OSError, match="Input/output"):
        replace(target, fill, overwrite=True)
    monkeypatch.undo()

    atomic.recover(target)
    assert read(target)["adapter_config.json"] == "old"
    assert beside(target) == ["adapter"]


# At once


@pytest.mark.parametrize("exists", [True, False])
def test_two_processes_leave_one_whole_result(forks, target, exists):
    for _ in range(5):
        if exists:
            para.save(OLD, target, overwrite=True)
        else:
            shutil.rmtree(target, ignore_errors=True)
        codes = forks.save_together(
            {"target": target, "saves": [0] * 10}, {"target": target, "saves": [1] * 10}
        )
        assert 0 in codes
        which(target)
        pathlib.Path(f"{target}.seconds").unlink(missing_ok=True)

        assert beside(target) == ["adapter"]


def test_what_appears_meanwhile_is_not_overwritten_unasked(target):
    def write(new):
        fill(new, "ours")
        fill(target, "theirs")

    with pytest.raises(FileExistsError, match="adapter' exists"):
        replace(target, write)
    assert set(read(target).values()) == {"theirs"}
    assert beside(target) == ["adapter"]


def test_other_things_that_appear_meanwhile_survive(target):
    def write(new):
        fill(new, "ours")
        target.mkdir()
        (target / "cat.jpg").write_text("meow")

    with pytest.raises(FileExistsError, match="adapter' is not an adapter"):
        replace(target, write, overwrite=True)
    assert read(target) == {"cat.jpg": "meow"}
    assert beside(target) == ["adapter"]


def test_what_appears_at_the_last_moment_is_overwritten_if_asked(target, monkeypatch):
    rename = os.rename

    def late(one, two):
        monkeypatch.undo()
        fill(target, "theirs")  # As another process's rename, just before ours.
        rename(one, two)

    monkeypatch.setattr(os, "rename", late)
    replace(target, lambda new: fill(new, "ours"), overwrite=True)
    assert set(read(target).values()) == {"ours"}
    assert beside(target) == ["adapter"]


def test_what_another_living_process_writes_is_not_swept(target):
    other = target.with_name(f".adapter.para-new-{os.getppid()}")
    fill(other, "theirs")

    with atomic.replacing(target) as new:
        fill(new)
    assert set(read(other).values()) == {"theirs"}


def test_only_what_belongs_to_the_target_is_swept(target):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()  # Nobody has its number now.
    dead = target.with_name(f".adapter.para-new-{atomic._host()}-{process.pid}-0a1b")
    others = [
        target.with_name(f".other.para-new-{atomic._host()}-{process.pid}-0a1b"),
        target.with_name(f"adapter.para-new-{atomic._host()}-{process.pid}-0a1b"),
        target.with_name(".adapter.para-new-notes"),
    ]
    for path in (dead, *others):
        fill(path)

    with atomic.replacing(target) as new:
        fill(new)
    assert beside(target) == sorted(["adapter", *(x.name for x in others)])


# Not killed


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_of_the_writer_leaves_what_was_there(target, error):
    fill(target, "old")

    def write(new):
        (new / "adapter_config.json").write_text("half")
        raise error

    with pytest.raises(error):
        replace(target, write, overwrite=True)
    assert set(read(target).values()) == {"old"}
    assert beside(target) == ["adapter"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_all_is_flushed_before_the_rename_and_the_rename_after_it(
    target, monkeypatch, exchange
):
    events = []
    fsync, rename, swap = os.fsync, os.rename, atomic._exchange

    def recorded_fsync(descriptor):
        fsync(descriptor)
        events.append(("flush", os.fstat(descriptor).st_ino))

    def recorded_rename(one, two):
        events.append(("rename", pathlib.Path(two).name))
        rename(one, two)

    def recorded_swap(one, two):
        if exchange:
            events.append(("rename", pathlib.Path(two).name))
        return exchange and swap(one, two)

    fill(target, "old")
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    monkeypatch.setattr(atomic, "_exchange", recorded_swap)
    with atomic.replacing(target, overwrite=True) as new:
        fill(new)
        fill(new / "inner")
        wanted = {x.stat().st_ino for x in [new, *new.rglob("*")]}

    first = next(i for i, (kind, _) in enumerate(events) if kind == "rename")
    last = max(i for i, (kind, _) in enumerate(events) if kind == "rename")
    assert events[last] == ("rename", "adapter")
    assert {number for kind, number in events[:first] if kind == "flush"} == wanted
    assert events[last + 1 :] == [("flush", target.parent.stat().st_ino)]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="has no exchange")
def test_this_system_exchanges_directories_in_one_step(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two ü"
    fill(one, "1")
    fill(two, "2")

    if not atomic._exchange(one, two):
        pytest.skip("this file system has no exchange")
    assert set(read(one).values()) == {"2"}
    assert set(read(two).values()) == {"1"}


def test_the_files_can_be_read_by_those_who_may_read_the_folder(target):
    # As a plain save would make them: not the private ones of a temporary directory.
    old = os.umask(0o022)
    try:
        para.save(OLD, target)
    finally:
        os.umask(old)

    assert target.stat().st_mode & 0o777 == 0o755
    assert {x.stat().st_mode & 0o777 for x in target.iterdir()} == {0o644}


def test_a_thread_of_a_failed_writer_that_comes_late_leaves_nothing(target):
    code = f"""
import pathlib, threading, time
from para_jax.formats import atomic

def late(new):
    time.sleep(0.4)
    (new / "part").mkdir(parents=True)

try:
    with atomic.replacing(pathlib.Path({str(target)!r}), overwrite=False) as new:
        threading.Thread(target=late, args=[new]).start()
        raise OSError(27, "File too large")
except OSError:
    pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)

    assert not beside(target)
    assert not target.exists()
