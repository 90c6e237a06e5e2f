"""One of two processes that time an all-reduce for `consortium doctor`: `python -m cluster.allreduce RANK STORE BACKEND`.

Rank 0 prints a JSON list of [bytes, median seconds].
"""

import json
import statistics
import sys
import time

SIZES = (2**16, 2**22, 2**26)
_REPEATS = 5


def main(rank: int, store: str, backend: str) -> None:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=2)
    measured = []
    for size in SIZES:
        tensor = torch.ones(size // 4, device=device)
        seconds = []
        for _ in range(1 + _REPEATS):  # the first one connects
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        measured.append([size, statistics.median(seconds[1:])])
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(measured))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
