"""llama.cpp's C functions, found once: silent, with the last complaint kept for error messages.

Does: import llama_cpp, say in one sentence how to get it, catch the library's log, offer small calls that keep Python's lock.
Does not: load a model. Imported when a GGUF file is opened.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from agents.chat import ModelError

INSTALL = (
    "GGUF files need llama-cpp-python: pip install 'penknife[gguf]' (it is compiled here: a C++ compiler and cmake, about four "
    'minutes; for a build that runs on other machines too, set CMAKE_ARGS="-DGGML_NATIVE=OFF" first)'
)
_ERROR, _CONTINUES = 4, 5


class Library:
    """`api` holds llama_cpp's functions, which let other threads run; the methods' own calls are too short for that to pay.

    A thread that gives Python's lock away may wait milliseconds to get it back from a busy one, so per-token calls keep it.
    """

    def __init__(self, api: Any) -> None:
        self.api = api
        self.complaint = ""
        """last line llama.cpp logged as an error"""
        quick = ctypes.PyDLL(api._lib._name)
        self.logits_at = _prototype(quick, "llama_get_logits_ith", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        """(context, place in the batch) -> address of that token's logits"""
        self.copy = _prototype(quick, "llama_memory_seq_cp", None, *[ctypes.c_void_p], *[ctypes.c_int32] * 4)
        """(memory, from sequence, to sequence, first position, end)"""
        self.remove = _prototype(quick, "llama_memory_seq_rm", ctypes.c_bool, ctypes.c_void_p, *[ctypes.c_int32] * 3)
        """(memory, sequence, first position, end); -1 and -1 remove all of it"""
        self.sample = _prototype(quick, "llama_sampler_sample", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        """(sampler, context, place in the batch) -> token"""
        self._callback = api.llama_log_callback(self._log)
        api.llama_log_set(self._callback, ctypes.c_void_p(0))
        api.llama_backend_init()

    def _log(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode(errors="replace").strip()
        if level == _ERROR and line:
            self.complaint = line

    def why(self, otherwise: str) -> str:
        """The last complaint, which is then forgotten."""
        line, self.complaint = self.complaint, ""
        return line or otherwise


@functools.cache
def library() -> Library:
    """llama.cpp, loaded on first use. Raises ModelError when it is not installed, or was built for another processor."""
    try:
        import llama_cpp.llama_cpp as api
    except ImportError:
        raise ModelError(INSTALL) from None
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"llama-cpp-python is installed but cannot be loaded ({str(error).splitlines()[0]}); {INSTALL}"
        ) from None
    return Library(api)


def usable_cores() -> int:
    """Cores this process may use, two threads of one core counted once, no more than OMP_NUM_THREADS.

    More threads than free cores only wait for each other, and llama.cpp waits by spinning: it then slows down many times over.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii").strip()
        except OSError:
            siblings = str(cpu)
        cores.add(siblings)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(len(cores), int(asked)) if asked.isdigit() else len(cores))


def _prototype(dll: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(dll, name)
    function.restype, function.argtypes = result, list(arguments)
    return function
