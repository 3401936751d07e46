"""Times cuDNN's fused matmul + bias + erf GELU, all plans, at ViT-H's lin1.

An alternative that was not taken (docs/performance.md); needs `pip install nvidia-cudnn-frontend`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import cudnn
except ImportError:
    sys.exit("error: cudnn is not installed; run `pip install nvidia-cudnn-frontend`")
import torch
import torch.nn.functional as F

from benchmarks.timing import graph_microseconds

BUFFERS = 4
M, N, K = 4096, 5120, 1280


def main() -> None:
    handle = cudnn.create_handle()
    half, fp32 = cudnn.data_type.HALF, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=half, intermediate_data_type=fp32, compute_data_type=fp32, handle=handle
    )
    a = graph.tensor(name="a", dim=[1, M, K], stride=[M * K, K, 1], data_type=half)
    b = graph.tensor(name="b", dim=[1, K, N], stride=[K * N, 1, K], data_type=half)
    bias = graph.tensor(name="bias", dim=[1, 1, N], stride=[N, N, 1], data_type=half)
    out = graph.gelu(input=graph.add(a=graph.matmul(A=a, B=b), b=bias))
    out.set_output(True).set_data_type(half)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans(cudnn.build_plan_policy.ALL)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").half()

    x = [random(M, K) for _ in range(BUFFERS)]
    weight = [random(N, K) * K**-0.5 for _ in range(BUFFERS)]
    y = [random(M, N) for _ in range(BUFFERS)]
    offset = random(N)
    expected = F.gelu(x[0].float() @ weight[0].float().t() + offset.float())
    workspace = torch.empty(max(graph.get_workspace_size(), 1), dtype=torch.uint8, device="cuda")
    for plan in range(graph.get_execution_plan_count()):

        def call(i: int, plan: int = plan) -> None:
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
            tensors = {a: x[i], b: weight[i], bias: offset, out: y[i]}
            graph.execute_plan_at_index(tensors, workspace, plan, handle=handle)

        y[0].fill_(float("nan"))
        call(0)
        torch.cuda.synchronize()
        error = float((y[0].float() - expected).norm() / expected.norm())
        if not error < 2e-3:
            print(f"plan {plan}: wrong, relative L2 {error:.1e}: not timed")
            continue
        time = graph_microseconds([lambda i=i: call(i) for i in range(BUFFERS)] * 2)
        print(f"plan {plan}: {time:.1f} us, relative L2 {error:.1e}")


if __name__ == "__main__":
    main()
