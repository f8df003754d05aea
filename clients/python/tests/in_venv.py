"""Installs the package as a user would, into a virtual environment in the build
folder, and runs a test with it.

usage: in_venv.py BUILD_DIR TEST [argument ...]

Ends with 77, aloud, when pip cannot reach the packages that it depends on.  Once
they are there it needs no network.
"""
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(HERE)
API = os.path.join(PACKAGE, "..", "..", "api")
NEEDED = ["pynng>=0.8.1,<1", "protobuf>=4.21", "setuptools>=70.1"]
UNREACHABLE = re.compile(r"Retrying|NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|"
                         r"SSLError|Name or service not known|Temporary failure", re.I)


def venv_with_packages(folder):
    """The python of an environment that has NEEDED."""
    python = os.path.join(folder, "venv", "bin", "python")
    made = os.path.join(folder, "made")
    want = "\n".join([sys.version, *NEEDED])
    if os.path.exists(made):
        with open(made, encoding="utf-8") as f:
            if f.read() == want:
                return python
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    subprocess.run([sys.executable, "-m", "venv", os.path.join(folder, "venv")], check=True)
    pip = subprocess.run([python, "-m", "pip", "install", "-q", "--retries", "1", "--timeout",
                          "20", *NEEDED], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, check=False)
    if pip.returncode != 0:
        print(pip.stdout)
        if UNREACHABLE.search(pip.stdout):
            print(f"SKIPPED: pip cannot reach the packages {', '.join(NEEDED)}")
            sys.exit(77)
        sys.exit("pip could not install the packages")
    with open(made, "w", encoding="utf-8") as f:
        f.write(want)
    return python


def install(python, folder):
    """From a copy: the build leaves files beside the sources."""
    source = os.path.join(folder, "src")
    shutil.rmtree(source, ignore_errors=True)
    package = os.path.join(source, "clients", "python")
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns(
        "build", "*.egg-info", "__pycache__", "sluice.binpb", "sluice_pb2.pyi", "tests"))
    os.makedirs(os.path.join(source, "api"))
    shutil.copy(os.path.join(API, "sluice.proto"), os.path.join(source, "api"))
    # No index: the versions that the package asks for have to be those of NEEDED.
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation",
                    package], check=True)


def main():
    build, test, arguments = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.environ.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore")
    folder = os.path.join(build, "python_client")
    python = venv_with_packages(folder)
    install(python, folder)
    sys.stdout.flush()
    os.execv(python, [python, "-B", test, *arguments])


if __name__ == "__main__":
    main()
