"""Two nodes, one of which is lost and comes back (`tests/multinode.sh`); and the script where it cannot run."""

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("multinode.sh")
LIMIT = 900


def script(*arguments, **more):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False, **{"timeout": LIMIT, **more}
    )


def skip_where_it_does(output):
    if output.startswith("skipped: "):
        pytest.skip(output.removeprefix("skipped: ").strip())


def test_help_says_what_it_takes():
    done = script("--help")
    assert done.returncode == 0 and "--lose" in done.stdout and "bash tests/multinode.sh" in done.stdout


@pytest.mark.parametrize("arguments", [["--lose", "2"], ["--lose"], ["--keep"]])
def test_misuse_is_told(arguments):
    done = script(*arguments)
    assert done.returncode == 64 and arguments[0] in done.stderr and not done.stdout


def test_without_its_tools_it_is_skipped(tmp_path):
    for tool in ("bash", "uname", "cat", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = script(env={"PATH": str(tmp_path)})
    assert done.returncode == 0 and "skipped: there is no `ip` here" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize("arguments", [[], ["--lose", "0", "--layout.tp=2", "--layout.ep=4"]], ids=["node1", "node0"])
def test_a_lost_node_comes_back_and_nothing_is_changed(arguments):
    done = script(*arguments)
    skip_where_it_does(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 4 shards are equal, bit for bit" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_one(tmp_path, number):
    """Its processes are those that were told of its folder."""

    def alive():
        commands = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                commands.append(path.read_bytes())
        return [command for command in commands if str(tmp_path).encode() in command]

    # A session of its own, with the usual answer to SIGINT, which a shell's background jobs may lack.
    command = ["env", "--default-signal=INT", "bash", str(SCRIPT), "--keep", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        skip_where_it_does(process.stdout.readline())
        limit = time.monotonic() + 60
        while not any(b"torch.distributed.run" in command for command in alive()):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    while alive():
        assert time.monotonic() < limit, alive()
        time.sleep(0.1)
