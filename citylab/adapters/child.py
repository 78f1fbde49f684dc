"""Engines and services as child processes that do not outlive us, whatever ends us."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def start_child(
    argv: Sequence[str | os.PathLike[str]],
    *,
    log_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    when_parent_dies: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own (a Ctrl-C at the terminal is ours to pass on), its output in a file.

    On Linux the kernel sends it `when_parent_dies` when the thread that calls this ends, so call it from the main
    thread. `user` is an account's name, for a program that refuses to be root.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def before_exec() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(when_parent_dies), 0, 0, 0)
            if os.getppid() != parent:  # it died before the request to tell us
                os._exit(1)

    output = log_file.open("ab") if log_file else None
    try:
        return subprocess.Popen(  # noqa: S603 -- our own engines
            [os.fspath(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            env=dict(env) if env is not None else None,
            cwd="/" if user else None,
            start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509 -- it only makes one system call
            user=user,
            group=user_group(user) if user else None,
            extra_groups=[] if user else None,
        )
    finally:
        if output:
            output.close()


def user_group(user: str) -> int:
    """The primary group of an account."""
    import pwd  # noqa: PLC0415 -- not on every system that this module is imported on

    return pwd.getpwnam(user).pw_gid


async def wait(child: "subprocess.Popen[bytes]", within: float | None = None) -> int | None:
    """Its exit code, or None when it still runs after `within` seconds."""
    deadline = None if within is None else asyncio.get_running_loop().time() + within
    while (code := child.poll()) is None:
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            return None
        await asyncio.sleep(0.02)
    return code


async def stop(
    child: "subprocess.Popen[bytes]", how: signal.Signals = signal.SIGTERM, within: float = 10.0
) -> int:
    """Ask it to stop; kill its whole session when it has not after `within` seconds. Returns the exit code."""
    if child.poll() is None:
        child.send_signal(how)
        if await wait(child, within) is None:
            os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def last_lines(log_file: Path, count: int = 5) -> str:
    """What a program said last, for the message that tells why it did not start."""
    try:
        return "\n".join(log_file.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""
