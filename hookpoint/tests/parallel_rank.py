"""One rank of a model that is split over two processes: generates, and is captured into its own ring."""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig

import sonde
from sonde.parallel import tensor_parallel


def main() -> None:
    job = json.loads(sys.argv[1])
    rank = job["rank"]
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{job['meeting']}", rank=rank, world_size=2)
    model = LlamaForCausalLM.from_pretrained(job["model"], distributed_config=DistributedConfig(tp_plan="auto")).eval()
    ids, mask = torch.tensor(job["ids"]), torch.tensor(job["mask"])
    hooks = ["mlp_post", "q"] + (["resid_post"] if rank == 0 else [])
    with sonde.capture(
        model, hooks, socket=job["socket"], requests=job["requests"], engine=job["engine"], rank=rank, rank_count=2,
        token_ids=rank == 0, mode="complete", shard=tensor_parallel(model),
    ) as cap:  # fmt: skip
        cap.wait_attached(30)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        epoch, stats = cap.epoch, cap.stats()
    print(json.dumps({"epoch": epoch, "problems": stats.problems, "out": out.tolist()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
