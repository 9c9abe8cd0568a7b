"""Measures HookPoints on a GPU. Each part takes less than 8 minutes on an H100 and appends what it measured to a file.

parts:
  1  fidelity: rows in the table, bit for bit, against clones of the same step; logits with and without capture
  2  decode step of a tight decoder of Qwen3-8B shapes: CUDA graphs and eager, beside other ways
  3  batches with agent, bus and Parquet behind them: throughput
  4  decode step of the Hugging Face model by torch.compile, in CUDA graphs
  5  serving: requests that arrive one by one, latencies with and without capture
  6  from a tensor to a verdict of a detector, and to the end of the request
  7  soak: engines that serve for minutes, and whether anything grows

It needs PyTorch with CUDA, transformers, pyarrow, nats-py, build/sonde (make build) and
build/cuda/cuda/libsonde.so (make -C cuda cuda). What this GPU has measured at this commit is not measured again.
Without a GPU it is a trial of its own code: small shapes, eager steps, figures that mean nothing and are kept nowhere.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "cuda" / "cuda" / "libsonde.so"
CPU_LIBRARY = ROOT / "build" / "cuda" / "libsonde.so"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=range(1, 8), required=True, help="what to measure")
    parser.add_argument("--only", default="", help="of part 1: cases whose name holds this")
    parser.add_argument("--shape", default="qwen3-8b", help="qwen3-8b or llama-3.1-8b, of parts 2, 3 and 5 to 7")
    parser.add_argument("--layers", type=int, default=0, help="of the 8B model of part 4, for little memory (36)")
    parser.add_argument("--batch", type=int, nargs="+", help="rows at a time: of part 2 (1 8 64), 3 (16 32 64), 4 (8)")
    parser.add_argument("--modes", nargs="+", help="of part 2: graph eager; of part 4: graph reduce-overhead eager")
    parser.add_argument("--rates", type=float, nargs="+", help="of part 5: requests a second")
    parser.add_argument("--rounds", type=int, default=5, help="of parts 3 to 5 (5)")
    parser.add_argument("--seconds", type=float, default=0, help="of a run: of part 5 (3), 6 (12), 7 (480)")
    parser.add_argument("--engines", type=int, default=4, help="of part 7 (4)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0)")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    file = Path(__file__).with_name("results.jsonl")
    parser.add_argument("--results", type=Path, default=file, help="file of results (beside this program)")
    return parser.parse_args()


def main() -> None:
    """Run one part."""
    given = arguments()
    if not (ROOT / "build" / "sonde").exists():
        sys.exit("build/sonde is missing: make build")
    sys.path.insert(0, str(ROOT / "hookpoint"))
    try:
        import nats  # noqa: F401 (sonde needs it)
        import pyarrow  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as e:
        sys.exit(f"the Python package {e.name} is missing: pip install torch transformers pyarrow nats-py")
    if "SONDE_LIBRARY" not in os.environ:
        library = LIBRARY if torch.cuda.is_available() else CPU_LIBRARY
        if not library.exists():
            sys.exit(f"{library.relative_to(ROOT)} is missing: make -C cuda cuda, make libsonde, or set SONDE_LIBRARY")
        os.environ["SONDE_LIBRARY"] = str(library)
    if not torch.cuda.is_available():
        print("NOT RUN: benchmarks on a GPU: there is none; this is a trial of their code")
        given.results, given.shape, given.batch = Path(os.devnull), "tiny", given.batch or [2]
    run(given)


def run(given: argparse.Namespace) -> None:
    """Run one part, with what it needs loaded."""
    import rig

    results = rig.Results(given.results, given.again)
    if given.part == 1:
        import fidelity

        fidelity.run(results, given.only)
    elif given.part == 2:
        import cost

        cost.run(results, given.shape, given.seed, given.batch or [1, 8, 64], given.modes or ["graph", "eager"])
    elif given.part == 3:
        import storage

        storage.run(results, given.shape, given.seed, given.batch or [16, 32, 64], given.rounds)
    elif given.part == 4:
        import compiled

        modes = given.modes or list(compiled.MODES)
        for batch in given.batch or [8]:
            compiled.run(results, given.layers, given.seed, batch, given.rounds, modes)
    elif given.part == 5:
        import serving

        serving.run(results, given.shape, given.seed, given.rates, given.seconds, given.rounds)
    elif given.part == 6:
        import verdict

        verdict.run(results, given.shape, given.seed, given.seconds)
    else:
        import soak

        soak.run(results, given.shape, given.seed, given.seconds, given.engines)


if __name__ == "__main__":
    main()
