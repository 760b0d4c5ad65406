"""Let a persona read the text files of one directory, and nothing else.

Does: list files, read one from a line on, in parts that fit a prompt. Every part of a path is opened from its parent without
following links, so that neither "..", an absolute path, a link nor a link put there in between leads out of the directory.
Does not: write, follow links, read binary or special files (pipes, devices), or decode anything but UTF-8.

    desk = Persona("desk", model, "Answer from the manuals.", tools=[FileTools("manuals")])
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from agents.tools import PersonaError, Tool, ToolError, tool

FILE_BYTES = 20 << 20
"""Larger files are not read."""
LISTED = 200
LEVELS = 20


class FileTools:
    """`list_files` and `read_file` over one directory, for systems with `openat` (Linux, macOS)."""

    def __init__(self, directory: str | Path, *, max_chars: int = 6000, prefix: str = "") -> None:
        """`max_chars` is how much of a file is shown at once. Raises PersonaError when `directory` is none, or this system cannot
        open files without following links."""
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise PersonaError(f"{self.directory}: is no directory; give the one whose files may be read")
        if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
            raise PersonaError("this system cannot open files without following links; give the texts to the persona another way")
        self.max_chars = max_chars
        self._tools = (
            tool(name=f"{prefix}list_files")(self._list),
            tool(name=f"{prefix}read_file", max_result_chars=max_chars + 200)(self._read),
        )

    def tools(self) -> Sequence[Tool]:
        """`list_files(folder)` and `read_file(path, start_line)`."""
        return self._tools

    def _list(self, folder: str = ".") -> str:
        """The files of a folder with their sizes in bytes; a folder's name ends in "/".

        Args:
            folder: path of the folder; "." is the whole directory
        """
        with self._opened(folder, os.O_DIRECTORY) as handle:
            found = []
            with os.scandir(handle) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found.append(f"{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        found.append(f"{entry.name} ({entry.stat(follow_symlinks=False).st_size})")
        left = len(found) - LISTED
        return "\n".join(sorted(found)[:LISTED]) + (f"\nand {left} more" if left > 0 else "") if found else "the folder is empty"

    def _read(self, path: str, start_line: int = 1) -> str:
        """The text of a file, from a line on. A long file comes in parts: the end of a part says which line is next.

        Args:
            path: path of the file, as list_files shows it
            start_line: first line wanted, counted from 1
        """
        if start_line < 1:
            raise ToolError(f"start_line is {start_line}; lines are counted from 1")
        with self._opened(path, 0) as handle:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                raise ToolError(f"{path!r} is a folder; list it with list_files")
            if not stat.S_ISREG(status.st_mode):
                raise ToolError(f"{path!r} is not a plain file")
            if status.st_size > FILE_BYTES:
                raise ToolError(f"{path!r} has {status.st_size:,} bytes; files over {FILE_BYTES:,} are not read")
            with os.fdopen(os.dup(handle), "rb") as file:
                data = file.read(FILE_BYTES + 1)
        if b"\0" in data:
            raise ToolError(f"{path!r} is binary; only text is read")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ToolError(f"{path!r} is not UTF-8 text; only that is read") from None
        return self._part(path, text.splitlines(keepends=True), start_line)

    def _part(self, path: str, lines: list[str], start_line: int) -> str:
        if start_line > len(lines):
            raise (
                ToolError(f"{path!r} has {len(lines)} lines; start_line is {start_line}")
                if lines
                else ToolError(f"{path!r} is empty")
            )
        room, out = self.max_chars, list[str]()
        for line in lines[start_line - 1 :]:
            if len(line) > room and out:
                break
            out.append(line if len(line) <= room else f"{line[:room]}… ({len(line) - room:,} more characters of this line)\n")
            room -= len(line)
            if room <= 0:
                break
        following = start_line + len(out)
        more = f"\n(lines {start_line} to {following - 1} of {len(lines)}; go on with start_line={following})"
        return "".join(out) + (more if following <= len(lines) else "")

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        """A descriptor of what `path` names below the directory, each part opened from its parent without following links."""
        parts = PurePosixPath(path.strip().replace("\\", "/")).parts
        if parts[:1] == ("/",) or ".." in parts or "\0" in path or len(parts) > LEVELS:
            raise ToolError(f"{path!r} leads out of the directory; give a path below it, such as list_files shows")
        at = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for n, part in enumerate(parts):
                last = n == len(parts) - 1
                kind = flags if last else os.O_DIRECTORY
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | kind, dir_fd=at)
                os.close(at)
                at = inner
            yield at
        except OSError as error:
            raise ToolError(_why(path, error)) from None
        finally:
            os.close(at)


def _why(path: str, error: OSError) -> str:
    import errno

    if error.errno == errno.ELOOP:
        return f"{path!r} is a link; links are not followed"
    if error.errno == errno.ENOTDIR:
        return f"{path!r} passes through a file or a link as if it were a folder; list_files shows what there is"
    return f"{path!r} cannot be read ({error.strerror}); list_files shows what there is"
