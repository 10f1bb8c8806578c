"""PyTorch: eager, by hand and in place, torch.compile, and a CUDA graph of a step."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.libraries import Trainer
from benchmarks.machine import THREADS, precision
from benchmarks.problems import BATCH, CLASSES, HIDDEN, PEAK, RATE, SMOOTHING, Problem


def place(device: str) -> str:
    """Return PyTorch's name of a device, with as many threads as the others have.

    On a GPU its products are TF32 where JAX's are: unless they are told otherwise.
    """
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision("high" if precision(device) == "TF32" else "highest")
    return "cuda" if device == "gpu" else "cpu"


def block(where: str) -> None:
    """Wait for the device."""
    if where == "cuda":
        torch.cuda.synchronize()


def model_of(problem: Problem, where: str) -> Any:
    """Return the network as a Sequential with the initial weights."""
    layers: list[Any] = []
    for number, (weight, bias) in enumerate(zip(problem.weights, problem.biases, strict=True)):
        if number:
            layers.append(torch.nn.ReLU())
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        layers.append(layer)
    return torch.nn.Sequential(*layers).to(where)


def data_of(problem: Problem, where: str) -> tuple[Any, Any, Any]:
    """Return inputs, classes and the rows of each step, on the device."""
    arrays = (problem.inputs, problem.classes.astype(np.int64), problem.order.astype(np.int64))
    inputs, classes, order = (torch.from_numpy(array).to(where) for array in arrays)
    return inputs, classes, order


def arrays(model: Any) -> list[np.ndarray]:
    """Return the parameters of a network, layer by layer."""
    return [parameter.detach().cpu().numpy() for parameter in model.parameters()]


def stepping(problem: Problem, device: str, wrap: Callable[[Any], Any] | None) -> Trainer:
    """Return a loop over a step by autograd and torch.optim.SGD, its loss and gradient wrapped."""
    where = place(device)
    model = model_of(problem, where)
    inputs, classes, order = data_of(problem, where)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, fused=where == "cuda")
    criterion = torch.nn.CrossEntropyLoss()

    def loss_of(inputs: Any, classes: Any) -> Any:
        return criterion(model(inputs), classes)

    compiling = None
    if wrap is not None:
        loss_of = wrap(loss_of)
        begin = time.perf_counter()
        loss_of(inputs[order[0]], classes[order[0]]).backward()
        block(where)
        compiling = time.perf_counter() - begin

    def steps() -> None:
        for rows in order:
            optimizer.zero_grad(set_to_none=True)
            loss_of(inputs[rows], classes[rows]).backward()
            optimizer.step()
        block(where)

    return Trainer(steps, lambda: arrays(model), compiling)


def eager(problem: Problem, device: str) -> Trainer:
    """Return the loop of PyTorch's tutorials."""
    return stepping(problem, device, None)


def compiled(problem: Problem, device: str) -> Trainer:
    """Return the same with forward pass, loss and backward pass compiled."""
    torch._dynamo.reset()
    return stepping(problem, device, torch.compile)


def by_hand(problem: Problem, device: str) -> Trainer:
    """Return the gradient written by hand, without autograd, the parameters updated in place."""
    where = place(device)
    weights = [torch.from_numpy(weight.copy()).to(where) for weight in problem.weights]
    biases = [torch.from_numpy(bias.copy()).to(where) for bias in problem.biases]
    inputs, classes, order = data_of(problem, where)
    scale = -RATE / problem.case.batch_size

    @torch.no_grad()
    def steps() -> None:
        for rows in order:
            target = classes[rows].unsqueeze(1)
            activations = [inputs[rows]]
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                activations.append(torch.addmm(bias, activations[-1], weight.t()).relu_())
            delta = torch.addmm(biases[-1], activations[-1], weights[-1].t()).softmax(1)
            delta.scatter_add_(1, target, torch.full_like(target, -1, dtype=delta.dtype))
            for layer in reversed(range(len(weights))):
                below, above = activations[layer], delta
                if layer:
                    delta = (above @ weights[layer]).mul_(below > 0)
                # Not `addmm_`, which adds the product's terms to the weights and rounds each sum.
                weights[layer].add_(above.t() @ below, alpha=scale)
                biases[layer].add_(above.sum(0), alpha=scale)
        block(where)

    def params() -> list[np.ndarray]:
        pairs = zip(weights, biases, strict=True)
        return [tensor.cpu().numpy() for pair in pairs for tensor in pair]

    return Trainer(steps, params)


def cuda_graph(problem: Problem, device: str) -> Trainer:
    """Return one step captured as a CUDA graph and replayed."""
    where = place(device)
    if where != "cuda":
        raise RuntimeError("needs a GPU")
    model = model_of(problem, where)
    inputs, classes, order = data_of(problem, where)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, fused=where == "cuda")
    criterion = torch.nn.CrossEntropyLoss()
    rows = order[0].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(model(inputs[rows]), classes[rows]).backward()
        optimizer.step()

    before = [parameter.detach().clone() for parameter in model.parameters()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    begin = time.perf_counter()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    block(where)
    compiling = time.perf_counter() - begin

    def steps() -> None:
        for number in range(len(order)):
            rows.copy_(order[number])
            graph.replay()
        block(where)

    return Trainer(steps, lambda: arrays(model), compiling)


def gradient(problem: Problem, device: str) -> Trainer:
    """Return calls of loss and `backward` with the first batch."""
    where = place(device)
    model = model_of(problem, where)
    inputs, classes, order = data_of(problem, where)
    inputs, classes = inputs[order[0]], classes[order[0]]
    criterion = torch.nn.CrossEntropyLoss()

    def calls() -> None:
        for _ in range(problem.case.steps):
            model.zero_grad(set_to_none=True)
            criterion(model(inputs), classes).backward()
            block(where)

    def gradients() -> list[np.ndarray]:
        return [parameter.grad.cpu().numpy() for parameter in model.parameters()]

    return Trainer(calls, gradients)


def accurate(data: Any, seed: int, epochs: int, device: str) -> float:
    """Return the accuracy on the test images after an eager loop."""
    where = place(device)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES)
    ).to(where)
    x, test_x = (
        torch.from_numpy(data[name]).to(where).float().div_(255) for name in ("x", "test_x")
    )
    t, test_t = (torch.from_numpy(data[name]).to(where).long() for name in ("t", "test_t"))
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=steps + 1, cycle_momentum=False
    )
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), device=where)[: len(x) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            criterion(model(x[rows]), t[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((model(test_x).argmax(1) == test_t).float().mean())
