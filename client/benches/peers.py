"""The peers of the benchmark: dp_accounting and Opacus, timed as `privacy.rs` times ours.

Prints one JSON value. Absolute times are used for the accountant only; Opacus is stated as a ratio to the plain
step of the same model in the same process.
"""
import json
import sys
import time


def best(times, work):
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def accountant():
    import dp_accounting as dp

    out = []
    plans = [(0.001, 0.8, 1e-6), (0.01, 1.0, 1e-6), (0.1, 4.0, 1e-6), (0.05, 50.0, 1e-9), (1e-5, 1.0, 1e-9)]
    for rate, noise, delta in plans:
        event = dp.SelfComposedDpEvent(
            dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), 100_000
        )
        found = []

        def work():
            a = dp.pld.PLDAccountant()
            a.compose(event)
            found.append(a.get_epsilon(delta))

        seconds = best(3, work)
        out.append({"seconds": seconds, "epsilon": round(found[-1], 5)})
    return out


def dp_sgd():
    import warnings

    warnings.filterwarnings("ignore")
    import torch
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from torch import nn

    torch.set_num_threads(1)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Linear(16, 128)
            self.position = nn.Embedding(64, 128)
            self.blocks = nn.ModuleList(Block() for _ in range(4))
            self.norm, self.out = nn.LayerNorm(128), nn.Linear(128, 2)

        def forward(self, x):
            at = torch.arange(64, device=x.device).expand(x.shape[0], 64).contiguous()
            h = self.into(x.view(-1, 64, 16)) + self.position(at)
            for block in self.blocks:
                h = block(h)
            return self.out(self.norm(h).mean(1))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(128), nn.LayerNorm(128)
            self.three, self.mix = nn.Linear(128, 384), nn.Linear(128, 128)
            self.up, self.down = nn.Linear(128, 256), nn.Linear(256, 128)

        def forward(self, h):
            q, k, v = self.three(self.n1(h)).view(-1, 64, 3, 4, 32).permute(2, 0, 3, 1, 4)
            m = nn.functional.scaled_dot_product_attention(q, k, v)
            h = h + self.mix(m.transpose(1, 2).reshape(-1, 64, 128))
            return h + self.down(nn.functional.gelu(self.up(self.n2(h))))

    class View(nn.Module):
        def forward(self, x):
            return x.view(-1, 1, 28, 28)

    def mlp(*widths):
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def cnn():
        return nn.Sequential(
            View(), nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
        )

    nets = [
        ("MLP 30-128-64-2", lambda: mlp(30, 128, 64, 2), 30, 256, 200),
        ("MLP of 1 M", lambda: mlp(784, 1024, 256, 10), 784, 128, 10),
        ("CNN of 40 k", cnn, 784, 256, 10),
        ("transformer of 0.5 M", Encoder, 1024, 16, 10),
    ]
    out = {}
    for device in ["cpu"] + (["cuda:0"] if torch.cuda.is_available() else []):
        out[device] = {}
        for name, make, width, rows, steps in nets:
            x = torch.randn(rows, width, device=device)
            y = torch.randint(0, 2, (rows,), device=device)

            def timed(step):
                def work():
                    for _ in range(steps):
                        step()
                    if device != "cpu":
                        torch.cuda.synchronize()

                work()
                return best(3, work) / steps

            net = make().to(device)
            sgd = torch.optim.SGD(net.parameters(), lr=0.01)
            loss = nn.CrossEntropyLoss()

            def plain():
                sgd.zero_grad()
                loss(net(x), y).backward()
                sgd.step()

            base = timed(plain)
            ratios = {}

            hooked = GradSampleModule(make().to(device))
            dp = DPOptimizer(
                torch.optim.SGD(hooked.parameters(), lr=0.01),
                noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=rows,
            )

            def hooks():
                dp.zero_grad()
                loss(hooked(x), y).backward()
                dp.step()

            ratios["hooks"] = timed(hooks) / base
            ghost = GradSampleModuleFastGradientClipping(
                make().to(device), max_grad_norm=1.0, use_ghost_clipping=True
            )
            dpg = DPOptimizerFastGradientClipping(
                torch.optim.SGD(ghost.parameters(), lr=0.01),
                noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=rows,
            )
            criterion = DPLossFastGradientClipping(ghost, dpg, nn.CrossEntropyLoss(reduction="mean"))

            def ghosts():
                dpg.zero_grad()
                criterion(ghost(x), y).backward()
                dpg.step()

            ratios["ghost"] = timed(ghosts) / base
            mode = min(ratios, key=ratios.get)
            out[device][name] = f"{ratios[mode]:.2f} ({mode})"
    return out


def utility():
    """Trains what an order describes, and gives the paths of the models."""
    import warnings

    warnings.filterwarnings("ignore")
    import numpy
    import torch
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from torch import nn

    torch.set_num_threads(1)
    with open(sys.argv[2]) as f:
        order = json.load(f)
    loss = nn.CrossEntropyLoss()
    found = []
    for job in order["jobs"]:
        x = torch.from_numpy(numpy.fromfile(job["x"], dtype="<f4")).view(-1, order["inputs"])
        y = torch.from_numpy(numpy.fromfile(job["y"], dtype="<u4").astype("int64"))
        found.append([])
        for noise in order["noises"]:
            layers, width = [], order["inputs"]
            for wide in order["widths"]:
                layers += [nn.Linear(width, wide), nn.ReLU()]
                width = wide
            net = nn.Sequential(*layers[:-1])
            base = torch.from_numpy(numpy.fromfile(job["base"], dtype="<f4"))
            nn.utils.vector_to_parameters(base.clone(), net.parameters())
            net = GradSampleModule(net)
            optimizer = DPOptimizer(
                torch.optim.SGD(net.parameters(), lr=order["learning_rate"]),
                noise_multiplier=noise,
                max_grad_norm=order["clip_norm"],
                expected_batch_size=order["rate"] * len(x),
            )
            for _ in range(order["steps"]):
                rows = torch.rand(len(x)) < order["rate"]
                optimizer.zero_grad()
                loss(net(x[rows]), y[rows]).backward()
                optimizer.step()
            path = f"{job['base']}-{noise}"
            nn.utils.parameters_to_vector(net.parameters()).detach().numpy().astype("<f4").tofile(path)
            found[-1].append(path)
    return found


parts = {"accountant": accountant, "dp-sgd": dp_sgd, "utility": utility}
print(json.dumps(parts[sys.argv[1]]()))
