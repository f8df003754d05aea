"""Adds to the package what protoc makes of api/sluice.proto (see sluice_pb2.py)."""
import os
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py

from build_backend import OLDEST_PROTOC, protoc_command

HERE = os.path.dirname(os.path.abspath(__file__))
API = os.path.normpath(os.path.join(HERE, "..", "..", "api"))


class BuildWithProto(build_py):
    def run(self):
        super().run()
        target = os.path.join(HERE if self.editable_mode else self.build_lib, "sluice")
        protoc = protoc_command()
        if protoc is None:
            raise SystemExit("the build needs protoc %d.%d or newer (Debian: protobuf-compiler), "
                             "or grpcio-tools" % OLDEST_PROTOC)
        if not os.path.exists(os.path.join(API, "sluice.proto")):
            raise SystemExit(f"there is no sluice.proto in {API}: build from a checkout")
        os.makedirs(target, exist_ok=True)
        subprocess.run([*protoc, f"--proto_path={API}", "--pyi_out", target,
                        "--descriptor_set_out", os.path.join(target, "sluice.binpb"),
                        "sluice.proto"], check=True)


setup(cmdclass={"build_py": BuildWithProto})
