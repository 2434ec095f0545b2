"""What this installation and this processor offer to compute with. Loads ONNX Runtime only where it alone can tell."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from embedpool.errors import ModelError
from embedpool.models import cache
from embedpool.models.providers import CPU, PROVIDERS, Compute, Offered, choose


def chosen(name: str, options: str) -> Compute:
    """The provider that is asked for, checked against what is here. Raises ModelError."""
    return CPU if (name, options) == ("cpu", "") else choose(name, options, offered(name))


def offered(name: str) -> Offered:
    """Enough to judge the provider of that name. Raises ModelError where ONNX Runtime cannot be loaded."""
    plugins = {}
    for package in filter(None, (provider.package for provider in PROVIDERS)):
        with contextlib.suppress(PackageNotFoundError):
            plugins[package] = version(package)
    part_of_runtime = [provider for provider in PROVIDERS if provider.name == name and not provider.package]
    flags = cache.processor_flags(Path("/proc/cpuinfo").read_text(errors="replace"))
    return Offered(cache.runtime_version(), _of_runtime() if part_of_runtime else (), plugins, flags)


def _of_runtime() -> tuple[str, ...]:
    try:
        from embedpool.models.session import available
    except ImportError as error:
        raise ModelError(f"ONNX Runtime cannot be loaded: {error}") from error
    return available()
