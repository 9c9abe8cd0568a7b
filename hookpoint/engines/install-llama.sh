#!/usr/bin/env bash
# Installs what the tests of llama.cpp need into an environment of its own, .venv-llama. The wheel is built from source,
# which takes 5 to 9 minutes, and is kept in build/llama.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.venv-llama version=0.3.36
if [ hookpoint/engines/requirements-llama.txt -nt "$venv/ready" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check --retries 1 -r hookpoint/engines/requirements-llama.txt
  if ! compgen -G "build/llama/llama_cpp_python-$version-*.whl" >/dev/null; then
    mkdir -p build/llama
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF" \
      "$venv/bin/pip" wheel -q --disable-pip-version-check --no-deps -w build/llama "llama-cpp-python==$version"
  fi
  "$venv/bin/pip" install -q --disable-pip-version-check --no-index --no-deps build/llama/llama_cpp_python-"$version"-*.whl
  touch "$venv/ready"
fi
"$venv/bin/pip" install -q --disable-pip-version-check --no-index --no-deps --no-build-isolation ./hookpoint
