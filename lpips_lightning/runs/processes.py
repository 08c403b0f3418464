"""The other ranks of this machine as processes: started by the same command, watched, and ended with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from typing_extensions import override

_PARENT = "LPIPS_LIGHTNING_PARENT"  # process id of rank 0 of a machine, for the ranks that it has started
_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", _PARENT)
_MAIN = """
import sys
sys.path[:] = {path!r}
try:
    from lpips_lightning.cli import main
    code = main()
except KeyboardInterrupt:  # while modules are imported
    code = 130
sys.exit(code)
"""
_INTERRUPTED = (130, -signal.SIGINT)
_GRACE = 60  # seconds for this process to notice that a rank is lost, before the watching thread ends it


class RankProcesses(_SubprocessScriptLauncher):
    """Lightning's launcher of processes, for a command that may be called from a user's program.

    The other ranks run the command, not the program that called it. If one of them dies, `lost` says so; Lightning
    would kill this process without a word. If this process dies, they end by themselves.

    Args:
        cluster_environment: Lightning's.
        num_processes: Ranks on this machine.
        num_nodes: Machines.
        command: What the other ranks run, after ``lpips-lightning``; empty: ``sys.argv``.

    Attributes:
        lost: How a rank ended early; empty if none did.
    """

    def __init__(self, cluster_environment: Any, num_processes: int, num_nodes: int, command: Sequence[str]) -> None:
        super().__init__(cluster_environment, num_processes, num_nodes)
        self._command = list(command) or sys.argv[1:]
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self._before: dict[str, str | None] = {}
        self._ended = threading.Event()
        self.lost = ""

    @property
    @override
    def is_interactive_compatible(self) -> bool:
        return True

    @override
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        parent = os.environ.get(_PARENT)
        if parent is not None and int(os.environ.get("LOCAL_RANK", "0")) > 0:
            threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
        return super().launch(function, *args, **kwargs)

    @override
    def _call_children_scripts(self) -> None:
        self._before = {name: os.environ.get(name) for name in _VARIABLES}
        environment = self.cluster_environment
        os.environ.update(
            MASTER_ADDR=environment.main_address,
            MASTER_PORT=str(environment.main_port),
            NODE_RANK=str(environment.node_rank()),
            LOCAL_RANK=str(environment.local_rank()),
            WORLD_SIZE=str(self.num_processes * self.num_nodes),
        )
        os.environ[_PARENT] = str(os.getpid())
        code = [sys.executable, "-c", _MAIN.format(path=[str(Path(entry).absolute()) for entry in sys.path])]
        for rank in range(1, self.num_processes):
            own = {**os.environ, "LOCAL_RANK": str(rank)}
            command = [*code, *self._command]
            # Ctrl-C is for this process, which then ends them: they may be importing, and would print a traceback.
            self._ranks[rank] = subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, start_new_session=True)
        threading.Thread(target=self._watch, daemon=True).start()

    @override
    def kill(self, signum: int) -> None:
        for process in self._ranks.values():
            process.send_signal(signum)  # no error if it has ended

    def end(self, kill: bool) -> None:
        """Wait for the other ranks, or kill them; the environment is as it was before.

        Args:
            kill: Whether to kill them.
        """
        self._ended.set()
        if kill:
            self.kill(_KILL)
        for process in self._ranks.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._ranks = {}
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}

    def _watch(self) -> None:
        """Notice that a rank has died; if this process is stuck, such as while ranks connect, end all."""
        while not self._ended.wait(0.5):
            self.lost = self.lost or self._first_lost()
            grace = _GRACE if dist.is_available() and dist.is_initialized() else 1
            if self.lost and not self._ended.wait(grace):
                self.kill(_KILL)
                interrupted = any(process.poll() in _INTERRUPTED for process in self._ranks.values())
                if not interrupted:
                    sys.stderr.write(f"lpips-lightning: {self.lost}\n")
                    sys.stderr.flush()
                os._exit(_INTERRUPTED[0] if interrupted else 2)

    def _first_lost(self) -> str:
        for rank, process in self._ranks.items():
            if (code := process.poll()) is None or code == 0:
                continue
            if code > 0 and self._ended.wait(5):  # it has told the others why, and they end too
                return ""
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            hint = "; too little memory?" if code == -9 else ""
            return f"expected rank {rank} on this machine to run to the end, but it {how}{hint}"
        return ""


_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def _end_with(parent: int) -> None:
    """End this process when its parent has ended. On Windows a parent stays the parent, so nothing happens."""
    while os.getppid() == parent or sys.platform == "win32":
        time.sleep(0.5)
    os._exit(1)
