"""The build: setuptools, and a protoc from wherever there is one.

A protoc on the PATH is used when it is new enough; otherwise the build, and only
the build, asks for grpcio-tools, which brings one.
"""
import re
import shutil
import subprocess
import sys

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that stay as they are

OLDEST_PROTOC = (3, 20)  # the first that writes .pyi files


def protoc_command():
    """How to call protoc, as the beginning of a command; None: there is none."""
    path = shutil.which("protoc")
    if path:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"(\d+)\.(\d+)", said.stdout)
        if version and tuple(map(int, version.groups())) >= OLDEST_PROTOC:
            return [path]
    try:
        import grpc_tools  # noqa: F401
    except ImportError:
        return None
    return [sys.executable, "-m", "grpc_tools.protoc"]


def with_protoc(requires):
    return requires if protoc_command() else [*requires, "grpcio-tools"]


def get_requires_for_build_wheel(config_settings=None):
    return with_protoc(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None):
    return with_protoc(build_meta.get_requires_for_build_editable(config_settings))


def build_sdist(sdist_directory, config_settings=None):
    raise RuntimeError("an sdist would lack api/sluice.proto: build a wheel from a checkout")
