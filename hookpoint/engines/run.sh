#!/usr/bin/env bash
# Runs the contract suite on every engine that can run here, each file in a process of its own, and follows the how-to of
# vLLM as it is written. Its last line counts; results.txt beside it is what it said last.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=build/engines.log
mkdir -p build
: >"$out"
say() { echo "$@" | tee -a "$out"; }
tests() { # environment, file
  "$1/bin/python" -m pytest -q -s -p no:cacheprovider --no-header -W ignore "hookpoint/engines/$2" >build/engines.part 2>&1
  grep -E '^(\.*)(vLLM|Sonde|Hugging|llama|none:|swapped:|shifted:|by arrival:|half|one sample:|[0-9]+ requests)|^FAILED|^NOT RUN|^[0-9]+ passed' \
    build/engines.part | sed 's/^\.*//' | tee -a "$out"
}

say "engines, $(date +%F), $(git rev-parse --short HEAD), $(nproc) cores, $(uname -m)"
if [ -x .venv/bin/python ]; then
  say "Sonde's engine and Hugging Face:"
  .venv/bin/pip install -q --disable-pip-version-check --no-index --no-deps --no-build-isolation ./hookpoint
  tests .venv test_others.py
else
  say "NOT RUN: Sonde's engine and Hugging Face: make test-python makes their environment"
fi
if hookpoint/engines/install.sh >build/engines-install.log 2>&1; then
  for file in test_vllm test_vllm_faults test_vllm_features test_vllm_modes test_vllm_http; do
    say "$file:"
    tests .venv-vllm "$file.py"
  done
  say "docs/how-to/vllm.md:"
  PATH="$PWD/.venv-vllm/bin:$PATH" go test -count=1 ./internal/docrun -run 'TestPagesWorkAsTheyAreWritten/docs/how-to/vllm.md' \
    >build/engines.part 2>&1 && say "1 passed, 0 failed, 0 skipped" || { tail -20 build/engines.part; say "0 passed, 1 failed, 0 skipped"; }
else
  say "NOT RUN: vLLM: it could not be installed; build/engines-install.log says why"
fi
if hookpoint/engines/install-llama.sh >build/engines-llama-install.log 2>&1; then
  for file in test_llama test_llama_faults; do
    say "$file:"
    tests .venv-llama "$file.py"
  done
  say "docs/how-to/llamacpp.md:"
  PATH="$PATH:$PWD/.venv-llama/bin" go test -count=1 ./internal/docrun -run 'TestPagesWorkAsTheyAreWritten/docs/how-to/llamacpp.md' \
    >build/engines.part 2>&1 && say "1 passed, 0 failed, 0 skipped" || { tail -20 build/engines.part; say "0 passed, 1 failed, 0 skipped"; }
else
  say "NOT RUN: llama.cpp: it could not be installed; build/engines-llama-install.log says why"
fi
say "NOT RUN: SGLang: no adapter of it is there yet"
say "NOT RUN: llama.cpp on a GPU, or with layers on one: no such build here"
say "NOT RUN: vLLM on a GPU, with several ranks, with the model runner V2: no such machine here"
awk '/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ {p += $1; f += $3; s += $5}
  END {printf "all together:\n%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0}' "$out" | tee -a "$out"
exit "${PIPESTATUS[0]}"
