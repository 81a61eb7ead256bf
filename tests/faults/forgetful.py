"""A small file system (FUSE, without a library) that loses what was not flushed, as a power cut does.

A file's bytes are safe after fsync of the file, a name is safe after fsync of its folder; a rename is one step that is
kept or lost whole. Nothing else is promised, and so nothing else is kept for certain. Orders are lines of JSON:

    {"do": "count"}                        -> state changes since the last order to arm
    {"do": "arm", "at": K}                 the K-th state change and all that follows fail: the power is gone
    {"do": "arm", "at": K, "errno": E, "for": N, "calls": C}   N calls fail with E, then the disk works again; C says
                                           which calls count: "changes", "open", or "all", reads and look-ups among them
    {"do": "crash", "seed": S, "how": W}   power comes back; W: "all" that was not flushed is lost, "some" of it, or
                                           "order": names are lost from one point in time on, as with a journal
    {"do": "keep"} / {"do": "back"}        remember the whole disk, and put it back
"""

from __future__ import annotations

import copy
import ctypes
import errno
import json
import os
import random
import select
import stat
import struct
import sys
from collections.abc import Callable

MAX_WRITE = 1 << 17
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = (
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16,
)  # fmt: skip
STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE, INTERRUPT = (
    17, 18, 20, 25, 26, 27, 28, 29, 30, 34, 35, 36,
)  # fmt: skip
DESTROY, BATCH_FORGET, RENAME2 = 38, 42, 45
CHANGES = {SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, LINK, WRITE, FSYNC, FSYNCDIR, CREATE}
CALLS = {"changes": CHANGES, "open": {OPEN, OPENDIR, CREATE}, "all": CHANGES | {LOOKUP, OPEN, READ, OPENDIR, READDIR}}
FOLDER_BYTES = 1 << 30


class Node:
    """A file, folder or link: what programs see, and what is safe."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.data = bytearray()
        self.safe_data = b""
        self.entries: dict[bytes, Node] = {}
        self.safe_entries: dict[bytes, Node] = {}
        self.number = 0


class Change:
    """Names that appear or vanish in one step: (folder, name, what it names then)."""

    def __init__(self, *effects: tuple[Node, bytes, Node | None]) -> None:
        self.effects = effects

    def make_safe(self) -> None:
        """Write it to where it is safe."""
        for folder, name, node in self.effects:
            if node is None:
                folder.safe_entries.pop(name, None)
            else:
                folder.safe_entries[name] = node


class Disk:
    """The tree, and what of it is not safe yet."""

    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.unsafe: list[Change] = []
        self._kept: tuple[Node, list[Change]] | None = None

    def change(self, *effects: tuple[Node, bytes, Node | None]) -> None:
        """Let names appear or vanish."""
        for folder, name, node in effects:
            if node is None:
                folder.entries.pop(name, None)
            else:
                folder.entries[name] = node
        self.unsafe.append(Change(*effects))

    def flush(self, node: Node) -> None:
        """Make a file's bytes or a folder's names safe."""
        node.safe_data = bytes(node.data)
        if stat.S_ISDIR(node.mode):
            touching = [c for c in self.unsafe if any(folder is node for folder, _, _ in c.effects)]
            for change in touching:
                change.make_safe()
            self.unsafe = [c for c in self.unsafe if c not in touching]

    def crash(self, draw: random.Random, how: str) -> None:
        """Lose what was not safe, or some of it."""
        last = draw.randrange(len(self.unsafe) + 1)
        for number, change in enumerate(self.unsafe):
            if (how == "some" and draw.random() < 0.5) or (how == "order" and number < last):
                change.make_safe()
        self.unsafe = []
        seen: set[int] = set()
        todo = [self.root]
        while todo:
            node = todo.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            node.entries = dict(node.safe_entries)
            todo += node.entries.values()
            if stat.S_ISREG(node.mode) and bytes(node.data) != node.safe_data:
                node.safe_data = _torn(node, draw) if how != "all" else node.safe_data
                node.data = bytearray(node.safe_data)

    def keep(self) -> None:
        """Remember everything."""
        self._kept = copy.deepcopy((self.root, self.unsafe))

    def back(self) -> None:
        """Put back what was remembered."""
        assert self._kept is not None
        self.root, self.unsafe = copy.deepcopy(self._kept)


def _torn(node: Node, draw: random.Random) -> bytes:
    """Return what may be found of bytes that were written and not flushed: a part, in sectors, or zeros."""
    sectors = draw.randrange(len(node.data) // 512 + 1) * 512
    return draw.choice(
        [node.safe_data, bytes(node.data), bytes(node.data[:sectors]), bytes(len(node.data)), node.safe_data[:sectors]]
    )


class FileSystem:
    """Answers the kernel's requests (linux/fuse.h, protocol 7.31)."""

    def __init__(self, mount: str) -> None:
        self.disk = Disk()
        self._nodes: dict[int, Node] = {}
        self._next = 1
        self._number(self.disk.root)
        self.count, self.at, self.errno, self.left, self.calls = 0, 0, 0, 0, CHANGES
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,default_permissions"
        if ctypes.CDLL(None, use_errno=True).mount(b"forgetful", mount.encode(), b"fuse", 6, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        self._work: dict[int, Callable[[Node, bytes], bytes]] = {
            LOOKUP: self._lookup, GETATTR: lambda n, b: self._attr(n), SETATTR: self._setattr,
            READLINK: lambda n, b: bytes(n.data), SYMLINK: self._symlink, MKNOD: self._mknod, MKDIR: self._mkdir,
            UNLINK: self._unlink, RMDIR: self._rmdir, RENAME: self._rename, RENAME2: self._rename2, LINK: self._link,
            OPEN: lambda n, b: struct.pack("=QII", 0, 1, 0), READ: self._read, WRITE: self._write,
            STATFS: self._statfs, RELEASE: lambda n, b: b"", FSYNC: self._fsync, FLUSH: lambda n, b: b"",
            OPENDIR: lambda n, b: struct.pack("=QII", 0, 0, 0), READDIR: self._readdir, RELEASEDIR: lambda n, b: b"",
            FSYNCDIR: self._fsync, ACCESS: lambda n, b: b"", CREATE: self._create, INIT: self._init,
        }  # fmt: skip

    def serve(self) -> None:
        """Answer until stdin ends."""
        while True:
            for ready in select.select([self.device, 0], [], [])[0]:
                if ready == 0:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    print(json.dumps(self._order(json.loads(line))), flush=True)
                else:
                    try:
                        request = os.read(self.device, MAX_WRITE + (1 << 16))
                    except OSError as error:
                        if error.errno in (errno.ENODEV,):
                            return
                        if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                            continue
                        raise
                    self._answer(request)

    def _order(self, order: dict[str, object]) -> dict[str, object]:
        what = order["do"]
        if what == "arm":
            self.count, self.at, self.errno = 0, int(str(order["at"])), int(str(order.get("errno", 0)))
            self.left, self.calls = int(str(order.get("for", 0))), CALLS[str(order.get("calls", "changes"))]
        elif what == "crash":
            self.at = 0
            self.disk.crash(random.Random(str(order["seed"])), str(order["how"]))
        elif what == "keep":
            self.disk.keep()
        elif what == "back":
            self.at = 0
            self.disk.back()
        if what in ("crash", "back"):
            self._nodes[1] = self.disk.root
        return {"count": self.count, "hit": bool(self.at) and self.count >= self.at}

    def _answer(self, request: bytes) -> None:
        _, opcode, unique, number = struct.unpack_from("=IIQQ", request)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        failed, body = self._fault(opcode), b""
        if not failed:
            try:
                work = self._work.get(opcode)
                if work is None:
                    raise OSError(errno.ENOSYS, "")
                body = work(self._nodes[number] if opcode != INIT else self.disk.root, request[40:])
            except KeyError:
                failed = errno.ENOENT
            except OSError as error:
                failed = error.errno or errno.EIO
        try:
            os.write(self.device, struct.pack("=IiQ", 16 + len(body), -failed, unique) + (b"" if failed else body))
        except OSError as error:
            if error.errno != errno.ENOENT:  # the asker has been killed meanwhile
                raise

    def _fault(self, opcode: int) -> int:
        if opcode in self.calls:
            self.count += 1
            if self.at and self.errno and self.at <= self.count < self.at + self.left:
                return self.errno
        if self.at and not self.errno and self.count >= self.at and opcode not in (INIT, RELEASE, RELEASEDIR):
            return errno.EIO  # no power
        return 0

    def _number(self, node: Node) -> int:
        if not node.number or self._nodes.get(node.number) is not node:
            node.number, self._next = self._next, self._next + 1
            self._nodes[node.number] = node
        return node.number

    # -- answers --

    def _init(self, node: Node, body: bytes) -> bytes:
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, 1 << 5, 12, 9, MAX_WRITE, 1, 32, 0, 0)

    def _attributes(self, node: Node) -> bytes:
        size = 4096 if stat.S_ISDIR(node.mode) else len(node.data)
        return struct.pack(
            "=QQQQQQIIIIIIIIII", self._number(node), size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, node.mode, 1,
            os.getuid(), os.getgid(), 0, 4096, 0,
        )  # fmt: skip

    def _attr(self, node: Node) -> bytes:
        return struct.pack("=QII", 0, 0, 0) + self._attributes(node)

    def _entry(self, node: Node) -> bytes:
        return struct.pack("=QQQQII", self._number(node), 0, 0, 0, 0, 0) + self._attributes(node)

    def _lookup(self, node: Node, body: bytes) -> bytes:
        return self._entry(node.entries[body.rstrip(b"\0")])

    def _setattr(self, node: Node, body: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("=IIQQ", body)
        (mode,) = struct.unpack_from("=I", body, 68)
        if valid & 8:
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
        if valid & 1:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return self._attr(node)

    def _make(self, folder: Node, name: bytes, mode: int) -> Node:
        if name in folder.entries:
            raise OSError(errno.EEXIST, "")
        node = Node(mode)
        self.disk.change((folder, name, node))
        return node

    def _symlink(self, node: Node, body: bytes) -> bytes:
        name, target, _ = body.split(b"\0")
        made = self._make(node, name, stat.S_IFLNK | 0o777)
        made.data = bytearray(target)
        made.safe_data = target  # a short target lies in the inode
        return self._entry(made)

    def _mknod(self, node: Node, body: bytes) -> bytes:
        return self._entry(self._make(node, body[16:].rstrip(b"\0"), struct.unpack_from("=I", body)[0]))

    def _mkdir(self, node: Node, body: bytes) -> bytes:
        mode = stat.S_IFDIR | struct.unpack_from("=I", body)[0]
        return self._entry(self._make(node, body[8:].rstrip(b"\0"), mode))

    def _create(self, node: Node, body: bytes) -> bytes:
        mode = struct.unpack_from("=II", body)[1]
        return self._entry(self._make(node, body[16:].rstrip(b"\0"), mode)) + struct.pack("=QII", 0, 1, 0)

    def _unlink(self, node: Node, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        assert node.entries[name]
        self.disk.change((node, name, None))
        return b""

    def _rmdir(self, node: Node, body: bytes) -> bytes:
        if node.entries[body.rstrip(b"\0")].entries:
            raise OSError(errno.ENOTEMPTY, "")
        return self._unlink(node, body)

    def _rename2(self, node: Node, body: bytes) -> bytes:
        return self._move(node, struct.unpack_from("=Q", body)[0], body[16:])

    def _rename(self, node: Node, body: bytes) -> bytes:
        return self._move(node, struct.unpack_from("=Q", body)[0], body[8:])

    def _move(self, node: Node, into: int, names: bytes) -> bytes:
        old, new, _ = names.split(b"\0")
        target = self._nodes[into]
        moved, there = node.entries[old], target.entries.get(new)
        if there is not None and there.entries:
            raise OSError(errno.ENOTEMPTY, "")
        self.disk.change((node, old, None), (target, new, moved))
        return b""

    def _link(self, node: Node, body: bytes) -> bytes:
        linked, name = self._nodes[struct.unpack_from("=Q", body)[0]], body[8:].rstrip(b"\0")
        if name in node.entries:
            raise OSError(errno.EEXIST, "")
        self.disk.change((node, name, linked))
        return self._entry(linked)

    def _read(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        return bytes(node.data[offset : offset + size])

    def _write(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        if offset > len(node.data):
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + size] = body[40 : 40 + size]
        return struct.pack("=II", size, 0)

    def _statfs(self, node: Node, body: bytes) -> bytes:
        blocks = FOLDER_BYTES // 4096
        return struct.pack("=QQQQQIIII24x", blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096, 0)

    def _fsync(self, node: Node, body: bytes) -> bytes:
        self.disk.flush(node)
        return b""

    def _readdir(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        names = [(b".", node), (b"..", node), *sorted(node.entries.items(), key=lambda pair: pair[0])]
        result = b""
        for number, (name, child) in enumerate(names[offset:], offset + 1):
            kind = stat.S_IFMT(child.mode) >> 12
            record = struct.pack("=QQII", self._number(child), number, len(name), kind) + name
            record += bytes(-len(record) % 8)
            if len(result) + len(record) > size:
                break
            result += record
        return result


if __name__ == "__main__":
    FileSystem(sys.argv[1]).serve()
