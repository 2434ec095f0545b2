"""A machine to boot: this one's files under an overlay that is memory, with systemd as the first process, and the product
installed under /opt as an administrator would. Nothing of it is left when its process namespace ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import embedpool

HERE = Path(__file__).parent
HOME = Path("/opt/embedpool")
HIDDEN = ("/home", "/root", "/tmp")  # by the unit, or by the machine's own tmpfs
BOOT_WITHIN_S = 100  # it takes 30 to 35 on two cores

# $1: the directory for all that is made; $2: the interpreter's prefix; $3, $4: libraries and sources; $5: what is exchanged
SCRIPT = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cp -a "$5/files/." "$1/root/"
rm -f "$1/root/etc/machine-id"
exec systemd-nspawn --quiet --boot --directory="$1/root" --register=no --keep-unit --private-network \
  --console=read-only --bind-ro="$2" --bind-ro="$3:/opt/embedpool/libs" --bind-ro="$4:/opt/embedpool/src" \
  --bind="$5:/exchange" systemd.unit=test.target
"""
TARGET = """
[Unit]
Requires=basic.target inside.service
After=basic.target
"""
INSIDE = """
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStartPre=/sbin/ldconfig
ExecStart=/opt/embedpool/bin/python /exchange/inside.py
ExecStopPost=/bin/systemctl exit 0
"""
SCRIPT_OF_PACKAGE = "#!/opt/embedpool/bin/python\nimport sys\nfrom embedpool.cli.main import main\nsys.exit(main())\n"


def why_not() -> str:
    """What this machine lacks for a boot, "" if nothing that can be seen beforehand."""
    if os.geteuid() != 0:
        return "only root may boot a machine in a namespace"
    for program in ("systemd-nspawn", "unshare", "systemctl"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: systemd-container)"
    return ""


def boot(exchange: Path) -> str:
    """Runs inside.py in the machine, which writes its findings to `exchange`; what the machine said on its console."""
    root, made = exchange / "files", exchange / "made"
    made.mkdir()
    prefix = _install(root)
    shutil.copy(HERE / "inside.py", exchange)
    sources = Path(embedpool.__file__).parent.parent
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += ["sh", "-c", SCRIPT, "sh", str(made), prefix, sysconfig.get_path("purelib"), str(sources), str(exchange)]
    environ = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ
    ) as it:
        try:
            return it.communicate(timeout=BOOT_WITHIN_S)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            it.kill()  # and with it, its namespaces
            return it.communicate()[0].decode(errors="replace") + f"\nnot done within {BOOT_WITHIN_S} s"


def _install(root: Path) -> str:
    """An environment and the service's files, to be laid over the machine's own; what else to mount: the interpreter, to a
    place that services see."""
    base = Path(sys.base_prefix)
    seen = not any(base.is_relative_to(place) for place in HIDDEN)
    prefix = base if seen else Path("/opt/python")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = root / f"opt/embedpool/lib/{version}/site-packages"
    packages.mkdir(parents=True)
    (packages / "paths.pth").write_text("/opt/embedpool/src\n/opt/embedpool/libs\n")
    (root / "opt/embedpool/bin").mkdir()
    (root / "opt/embedpool/bin/python").symlink_to(prefix / "bin" / version)
    (root / "opt/embedpool/pyvenv.cfg").write_text(f"home = {prefix}/bin\ninclude-system-site-packages = false\n")
    script = root / "opt/embedpool/bin/embedpool"
    script.write_text(SCRIPT_OF_PACKAGE)
    script.chmod(0o755)
    command = [sys.executable, "-P", "-m", "embedpool", "systemd", "install", f"--program={HOME}/bin/embedpool"]
    subprocess.run([*command, "--client=webapp", f"--root={root}"], check=True, capture_output=True)
    libraries = root / "etc/ld.so.conf.d/000-python.conf"  # of an interpreter that was built to find its own elsewhere
    libraries.parent.mkdir()
    libraries.write_text(f"{prefix}/lib\n")
    units = root / "etc/systemd/system"
    (units / "test.target").write_text(TARGET)
    (units / "inside.service").write_text(INSIDE)
    return f"{base}:{prefix}"
