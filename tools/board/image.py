"""The image of the emulated board: Debian arm64 unpacked, never run here, with wheels for the same.

Nothing of arm64 is executed and no file system is mounted: mmdebstrap unpacks the packages, what their
scripts would do for a board this small is done by hand, and `mke2fs -d` writes the disk. Login and host
keys are made new for each image. The image lies in a folder named by what it is made from, so that a
change of this file, `init.sh` or one of the lists makes another.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STATE = ROOT / ".board"
SUITE = "bookworm"
PYTHON = "3.11"  # of that suite
USER, USER_ID = "pi", 1000
DISK_MIB = 3072
TOOLS = ("mmdebstrap", "mke2fs", "depmod", "cpio", "gzip", "ssh-keygen")
PLATFORMS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 26, 27, 28, 31, 34)))
# Drivers of QEMU's virtual disk and network, and what they need, are loaded before the disk can be.
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100
Subsystem sftp /usr/lib/openssh/sftp-server
"""
INITRD_INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /disk
/bin/busybox mount -t devtmpfs none /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; /bin/busybox sleep 0.2; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /disk
exec /bin/busybox switch_root /disk /sbin/board-init
"""


class BoardError(Exception):
    """What cannot be done here, and what to do about it."""


def listed(name: str) -> list[str]:
    """Return the lines of a list beside this file, without comments."""
    lines = (line.partition("#")[0].strip() for line in (HERE / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def digest() -> str:
    """Return the name of the image that the present sources make."""
    parts = [(HERE / name).read_bytes() for name in ("image.py", "init.sh", "packages.txt", "wheels.txt")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def ensure_image() -> Path:
    """Return the folder of the image, built where it is missing; older images are removed.

    Raises:
        BoardError: something it takes is missing, or a step failed.
    """
    folder = STATE / f"image-{digest()}"
    if (folder / "complete").is_file():
        return folder
    check_tools(TOOLS)
    if os.geteuid() != 0:
        raise BoardError("building the board's image needs root (files of many owners): sudo make board")
    STATE.mkdir(mode=0o700, exist_ok=True)
    with open(STATE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever else wants it waits for ours
        if not (folder / "complete").is_file():
            build(folder)
    return folder


def build(folder: Path) -> None:
    """Build the image; what an interrupted build left, and older images, are removed."""
    for old in (*STATE.glob("image-*"), *STATE.glob("root-*"), *STATE.glob("initrd-*")):
        shutil.rmtree(old)
    say(f"building the image of the board into {folder.relative_to(ROOT)} (half a minute, some 200 MB of downloads)")
    folder.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory(prefix="root-", dir=STATE) as temporary:
        root = Path(temporary) / "root"
        unpack_packages(root)
        version = kernel_version(root)
        write_initrd(root, version, folder / "initrd.img")
        shutil.copyfile(root / f"boot/vmlinuz-{version}", folder / "vmlinuz")
        make_keys(folder)
        configure(root, folder)
        install_wheels(root)
        compile_python(root)
        strip(root)
        write_disk(root, folder / "disk.img")
    (folder / "complete").write_text("", encoding="ascii")


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"board: {text}", file=sys.stderr, flush=True)


def check_tools(tools: tuple[str, ...]) -> None:
    """Refuse to begin what cannot end."""
    missing = [tool for tool in tools if shutil.which(tool, path=search_path()) is None]
    if missing:
        raise BoardError(f"not installed here: {', '.join(missing)}; next: make system-packages")


def search_path() -> str:
    """Return the PATH with the folders of the system's own tools."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def call(*command: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    """Run a step; what it said is shown where it failed."""
    environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, input=text, capture_output=True, text=True
    )
    if done.returncode:
        raise BoardError(f"{command[0]} failed with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def unpack_packages(root: Path) -> None:
    """Unpack the packages and all they need; their scripts are not run."""
    say("unpacking Debian packages")
    merged = 'mkdir -p "$1/usr/bin" "$1/usr/sbin" "$1/usr/lib"; for d in bin sbin lib; do ln -s "usr/$d" "$1/$d"; done'
    call(
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--architectures=arm64",
        "--variant=extract",
        "--aptopt=Apt::Install-Recommends false",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f"--setup-hook={merged}",
        f"--include={','.join(listed('packages.txt'))}",
        SUITE,
        root,
    )


def kernel_version(root: Path) -> str:
    """Return the version of the one kernel in the tree."""
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    return kernel.name.removeprefix("vmlinuz-")


def write_initrd(root: Path, version: str, target: Path) -> None:
    """Write what finds the disk: busybox, and the drivers with what they need, in order."""
    call("depmod", "-b", root, version)
    modules = root / "lib/modules" / version
    needs = {}
    for line in (modules / "modules.dep").read_text(encoding="utf-8").splitlines():
        name, _, others = line.partition(":")
        needs[Path(name).name.partition(".")[0].replace("-", "_")] = [name, *others.split()]
    order: list[str] = []
    for driver in DRIVERS:
        for path in reversed(needs.get(driver, [])):  # absent where it is built in
            if path not in order:
                order.append(path)
    with tempfile.TemporaryDirectory(prefix="initrd-", dir=STATE) as temporary:
        tree = Path(temporary)
        for name in ("bin", "modules"):
            (tree / name).mkdir()
        shutil.copy(root / "bin/busybox", tree / "bin/busybox")
        for path in order:
            shutil.copy(modules / path, tree / "modules" / Path(path).name)
        (tree / "modules/order").write_text("\n".join(Path(path).name for path in order) + "\n", encoding="ascii")
        (tree / "init").write_text(INITRD_INIT, encoding="ascii")
        (tree / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        script = f'cpio --quiet -o -H newc | gzip -1 > "{target}"'
        call("sh", "-c", script, cwd=tree, text=names)


def make_keys(folder: Path) -> None:
    """Make the login key and the host key of this image."""
    for name in ("id_ed25519", "host_ed25519"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "emulated board", "-f", folder / name)


def configure(root: Path, folder: Path) -> None:
    """Do by hand what the packages' scripts would: accounts, sshd, the first process."""
    etc, masters = root / "etc", root / "usr/share/base-passwd"
    home = root / "home" / USER
    accounts = (masters / "passwd.master").read_text(encoding="ascii").replace("root:*:", "root:x:")
    accounts += f"sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/bash\n"
    groups = (masters / "group.master").read_text(encoding="ascii") + f"{USER}:x:{USER_ID}:\n"
    names = [line.partition(":")[0] for line in accounts.splitlines()]
    write(etc / "passwd", accounts)
    write(etc / "group", groups)
    write(etc / "shadow", "".join(f"{name}:*:19000:0:99999:7:::\n" for name in names), 0o600)
    write(etc / "hostname", "board\n")
    write(etc / "hosts", "127.0.0.1 localhost board\n")
    write(etc / "nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")
    write(etc / "machine-id", hashlib.sha256((folder / "host_ed25519.pub").read_bytes()).hexdigest()[:32] + "\n")
    write(etc / "ssh/sshd_config", SSHD_CONFIG)
    write(etc / "ssh/ssh_host_ed25519_key", (folder / "host_ed25519").read_text(encoding="ascii"), 0o600)
    write(home / ".ssh/authorized_keys", (folder / "id_ed25519.pub").read_text(encoding="ascii"), 0o600)
    (home / ".ssh").chmod(0o700)
    for path in (home, *home.rglob("*")):
        os.chown(path, USER_ID, USER_ID)
    write(root / "sbin/board-init", (HERE / "init.sh").read_text(encoding="ascii"), 0o755)
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of the tree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def install_wheels(root: Path) -> None:
    """Put wheels for arm64 below /opt/runtimes, a folder each; pip only unpacks them."""
    say("unpacking wheels")
    for line in listed("wheels.txt"):
        name, *requirements = line.split()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
        command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_aarch64")]
        call(*command, "--target", root / "opt/runtimes" / name, *requirements)


def compile_python(root: Path) -> None:
    """Compile all Python files here, where it takes a second, if the interpreter is the board's."""
    interpreter = shutil.which(f"python{PYTHON}", path=f"{Path(sys.executable).parent}:{search_path()}")
    if interpreter is None:
        say(f"no python{PYTHON} here: the board compiles what it imports itself, slowly")
        return
    folders = [root / f"usr/lib/python{PYTHON}", root / "usr/lib/python3", root / "opt/runtimes"]
    command = [interpreter, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*command, "-s", str(root), "-p", "/", *map(str, folders)], capture_output=True)  # some cannot


def strip(root: Path) -> None:
    """Remove what a board without a screen or a package manager does not need."""
    for name in ("boot", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt"):
        shutil.rmtree(root / name, ignore_errors=True)


def write_disk(root: Path, target: Path) -> None:
    """Write the tree as an ext4 file system, as wide as needed and sparse."""
    say("writing the disk")
    call("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", root, target, f"{DISK_MIB}M")
