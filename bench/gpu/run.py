"""Measures HookPoints on a GPU. Each part takes less than 8 minutes on an H100 and appends what it measured to a file.

parts:
  1  fidelity: rows in the table, bit for bit, against clones of the same step
  2  decode step of Qwen3-8B shapes: eager and CUDA graphs, batch 1, 8 and 64, beside other ways
  3  batches of generate with agent, bus and Parquet behind them
  4  decode step by torch.compile(mode="reduce-overhead")

It needs PyTorch with CUDA, transformers, pyarrow, nats-py, build/sonde (make build) and
build/cuda/cuda/libsonde.so (make -C cuda cuda). What this GPU has measured at this commit is not measured again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "cuda" / "cuda" / "libsonde.so"


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2, 3, 4), required=True, help="what to measure")
    parser.add_argument("--layers", type=int, default=0, help="of the 8B model, for GPUs with little memory (36)")
    parser.add_argument("--batch", type=int, nargs="+", help="rows that decode: of part 2 (1 8 64), of part 4 (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the arms (0)")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    file = Path(__file__).with_name("results.jsonl")
    parser.add_argument("--results", type=Path, default=file, help="file of results (beside this program)")
    given = parser.parse_args()
    if not (ROOT / "build" / "sonde").exists():
        sys.exit("build/sonde is missing: make build")
    if "SONDE_LIBRARY" not in os.environ:
        if not LIBRARY.exists():
            sys.exit(f"{LIBRARY.relative_to(ROOT)} is missing: make -C cuda cuda, or set SONDE_LIBRARY")
        os.environ["SONDE_LIBRARY"] = str(LIBRARY)
    sys.path.insert(0, str(ROOT / "hookpoint"))
    try:
        import nats  # noqa: F401 (sonde needs it)
        import pyarrow  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as e:
        sys.exit(f"the Python package {e.name} is missing: pip install torch transformers pyarrow nats-py")
    if not torch.cuda.is_available():
        print("NOT RUN: benchmarks on a GPU: there is none")
        return
    import cost
    import fidelity
    import rig
    import storage

    results = rig.Results(given.results, given.again)
    if given.part == 1:
        fidelity.run(results)
    elif given.part == 2:
        cost.run(results, given.layers, given.seed, given.batch or [1, 8, 64])
    elif given.part == 3:
        storage.run(results, given.layers, given.seed)
    else:
        for batch in given.batch or [8]:
            cost.run_compiled(results, given.layers, given.seed, batch)


if __name__ == "__main__":
    main()
