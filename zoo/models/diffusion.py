"""Models that turn noise into data step by step: diffusion, rectified flow, flow matching; one model, parts chosen.

x is data as the dataset gives it, x_0 the same in real numbers, x_1 noise, x_t = alpha(t) x_0 + sigma(t) x_1, t from
data to noise. A network sees x_t and t and tells o, from which x_0, x_1 and the velocity follow (zoo.nn.targets).
Integers in [0, levels) become x_0 = 2 x / (levels - 1) - 1 in [-1, 1], and samples are rounded back.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.models.probability_flow import ProbabilityFlow
from zoo.nn.bases import Gaussian
from zoo.nn.conditions import Condition
from zoo.nn.guidance import clipped, guided
from zoo.nn.likelihood import wide
from zoo.nn.paths import Path, Straight, shifted, spread
from zoo.nn.runge_kutta import Watch
from zoo.nn.samplers import Field, Variance, ddim
from zoo.nn.solvers import Solver, solve, straightness
from zoo.nn.targets import PlainWeight, Target, Velocity
from zoo.nn.times import TimeSampler, Uniform
from zoo.nn.transport import Independent
from zoo.nn.upsample_guidance import upsampled
from zoo.types import Codec, Space


class Diffusion(ProbabilityFlow):
    """A network that tells noise from data, trained at random times of a path between them.

    loss = E weight(t) |network(x_t, t) - o|^2, the mean over the elements of an example. Ho et al. 2020, Song et al.
    2020, Karras et al. 2022, Liu et al. 2022, Lipman et al. 2022: choices of the parts.

    backbone        backbone(shape, context) makes the network: x (B, *shape), t (B,), Condition -> (B, *shape)
    source          makes the law of x_1: zoo.nn.Gaussian or EightGaussians
    coupling        which x_1 goes with which x_0: Independent, MinibatchOT of zoo.nn
    path            Straight, VariancePreserving, EDMPath of zoo.nn
    target          what the network tells: Velocity, Noise, Data, Score, Preconditioned of zoo.nn
    time_sampler    Uniform, LogitNormal, LogNormal, At of zoo.nn
    weighting       PlainWeight, EDMWeight, MinSNR of zoo.nn
    condition       makes what reads y: ClassCondition, CaptionCondition of zoo.nn; None: y is not used
    drop            how often an example is told nothing, which classifier-free guidance needs (Ho & Salimans 2022)
    shift           by how much there is more noise than the time sampler says, for large images (zoo.nn.shifted)
    dequantize      train on x + u, u even within the bin of an integer, as likelihood is measured; not for the best FID

    ValueError for a target that says nothing at an end of the path, and for drop outside of [0, 1].
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        levels: int | None,
        backbone: Callable[..., nn.Module],
        source: Callable[[], Any] = Gaussian,
        coupling: Callable[[Tensor, Tensor], Tensor] | None = None,
        path: Path | None = None,
        target: Target | None = None,
        time_sampler: TimeSampler | None = None,
        weighting: Callable[..., Tensor] | None = None,
        condition: Callable[[], nn.Module] | None = None,
        drop: float = 0.1,
        shift: float = 1.0,
        dequantize: bool = False,
    ) -> None:
        super().__init__(shape, levels, source)
        if not 0 <= drop <= 1:
            raise ValueError(f"drop={drop}: a condition is dropped with a probability, as 0.1")
        self.latent = Space(self.shape)
        self.coupling = coupling or Independent()
        self.path, self.target = path or Straight(), target or Velocity()
        self.target.check(self.path)
        self.span = self.path.span
        self.sigma = float(self.path.coefficients(torch.tensor(self.span[1], dtype=torch.float64))[1])
        self.time_sampler, self.weighting = time_sampler or Uniform(), weighting or PlainWeight()
        self.condition = condition() if condition else None
        self.conditional = self.condition is not None
        self.drop, self.shift, self.dequantize = drop, shift, dequantize
        self.backbone = backbone(
            shape=self.shape, context=self.condition.dim if self.condition is not None else None
        )
        self.evaluations = 0  # of the network, for each example of the last sample
        self.watch: Watch = None  # told of each step of a sampling: zoo.nn.runge_kutta

    def can(self, ability: type) -> bool:
        """Whether it has an ability of zoo.types; it is no codec of x where its noise belongs to x and y together."""
        return isinstance(self, ability) and not (ability is Codec and self.conditional)

    def loss(self, x: Tensor, y: Tensor | None = None, *, noise: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted error of what the network tells, at one time for each example.

        noise   x_1 that belongs to x, (B, *shape), as reflow's pairs have it; None: drawn, and coupled
        """
        x_0 = self.interval.real(x, self.precision, dequantize=self.dequantize)
        x_1 = self.coupling(x_0, self.source.sample(x_0)) if noise is None else noise.to(x_0)
        t = self.time_sampler(len(x), self.span, device=x.device)
        t = shifted(self.path, t, self.shift).to(x_0)
        alpha, sigma = self.path(t)
        x_t = spread(alpha, x_0) * x_0 + spread(sigma, x_0) * x_1
        keep = torch.rand(len(x), device=x.device) >= self.drop if self.conditional else None
        o = self.told(x_t, t, self._condition(y, keep))
        error = (o - self.target.of(x_0, x_1, t, self.path)).square().flatten(1).mean(1)
        weight = self.weighting(self.path, t, self.target.gain(self.path, t)).to(error.dtype)
        return {"loss": (weight * error).mean()}

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        solver: Solver = "heun",
        steps: int = 50,
        guidance: float = 1.0,
        shift: float | None = None,
        eta: float = 0.0,
        variance: Variance = "small",
        tolerance: float = 1e-5,
        clip: bool = False,
        upsample: int = 1,
    ) -> Tensor:
        """n examples, (n, *shape), the data's own kind of numbers.

        y           (n,) classes or (n, L) captions; where they are missing classes are drawn evenly, captions are empty
        solver      of zoo.nn.solvers; euler to rk45 solve the ODE, ddpm draws noise at each step
        steps       of the solver; rk45 chooses its own
        guidance    w of v = v_without + w (v_with - v_without); 1 is the condition alone, 0 nothing of it
        shift       of the times (zoo.nn.shifted); None: that of the training
        eta         of ddim: 0 draws nothing, 1 as much as ddpm
        variance    of ddpm's noise: small or large, theirs for the best FID
        tolerance   of rk45
        clip        keep the estimate of x_0 within [-1, 1] at each step, as Ho et al. 2020, of images of integers
        upsample    images so many times as wide as the data, by upsample guidance (zoo.nn.upsample_guidance)

        ValueError for options that do not go together.
        """
        if (eta or solver == "ddpm") and not isinstance(self.source, Gaussian):
            raise ValueError(
                f"solver={solver} draws Gaussian noise, and this source is another; try heun or rk45"
            )
        if clip and self.levels is None:
            raise ValueError("clip=true keeps images of integers in their range, and these are real numbers")
        if upsample < 1 or (upsample > 1 and len(self.shape) != 3):
            raise ValueError(f"upsample={upsample}: images are made larger by a whole number, 1 leaves them")
        field = self.field(self.asked(n, y), guidance=guidance, clip=clip, upsample=upsample)
        shift = self.shift if shift is None else shift
        options = {"eta": eta, "variance": variance, "tolerance": tolerance, "watch": self.watch}
        x_0 = solve(field, self.noise(n, upsample), solver=solver, steps=steps, shift=shift, **options)
        self.evaluations = field.evaluations
        return self.interval.data(x_0)

    def field(
        self, y: Tensor | None = None, *, guidance: float = 1.0, clip: bool = False, upsample: int = 1
    ) -> Field:
        """The velocity field that samples follow: field(x, t), and field.ends(x, t); it counts evaluations.

        ValueError for a guidance other than 1 of a model without condition, or that was never told nothing, and for y
        that the condition does not know.
        """
        if self.condition is not None and y is not None:
            self.condition.check(y)
        if guidance != 1 and self.condition is None:
            raise ValueError(f"guidance={guidance}: this model has no condition; it takes guidance=1")
        if guidance != 1 and self.drop == 0:
            raise ValueError(
                f"guidance={guidance}: with drop=0 this model never learned what to tell without its condition; it "
                "takes guidance=1, or train it with model.drop=0.1"
            )
        keep = None if y is None else torch.full((len(y),), guidance != 0, device=y.device)
        two = guidance not in (0, 1)
        if two and y is not None:  # the condition, and nothing, at once
            y, keep = torch.cat([y, y]), torch.cat([keep, ~keep])
        tell = partial(self.told, c=self._condition(y, keep))
        if two:
            tell = guided(tell, guidance)

        def ends(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            t = t.to(x.dtype)
            return self.target.ends(tell(x, t), x, t, self.path)

        if clip:
            ends = clipped(ends, self.path)
        around = partial(upsampled, path=self.path, m=upsample) if upsample > 1 else None
        return Field(self.path, ends, cost=2 if two else 1, around=around)

    @torch.inference_mode(False)  # the trace needs gradients, which inference has not
    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        tolerance: float = 1e-5,
        probes: int = 1,
        samples: int = 1,
    ) -> Tensor:
        """log p(x), or log p(x | y), in nats, (B,), float64, without gradients: by the ODE, solved by rk45.

        log p(x_0) = log p(x_T) + integral of div v from data to noise (Chen et al. 2018, Song et al. 2020). Where the
        path's span begins above 0 the data are taken to be at its least time. Of integers it is of the bound by
        uniform dequantization, log P(x) >= log p(x_0 + u) + D log(2 / (levels - 1)), u even within the bin.

        tolerance   of rk45, whose error is that of the whole batch
        probes      of Hutchinson's estimate of the trace, drawn once for each solve; of data of up to 16 dimensions the
                    trace is exact, and they are not used
        samples     draws of u, log of the mean of whose densities is taken; of real numbers nothing is drawn

        ValueError for probes or samples below 1, and without y for a model with a condition.
        """
        if min(probes, samples) < 1:
            raise ValueError(f"probes={probes}, samples={samples}: at least one of each is needed")
        v = self.field(None if y is None else y.clone())
        return self.likelihood(v, x, tolerance=tolerance, probes=probes, draws=samples)

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor | None = None, *, steps: int = 50, guidance: float = 1.0) -> Tensor:
        """The noise that gives x, (B, *shape), by DDIM towards the noise: Song et al. 2020, section 5.4.

        ValueError without y for a model with a condition: with another y the noise gives another x.
        """
        times = self.path.grid(steps).flip(0)
        x_0 = self.interval.real(x, self.precision)
        x = ddim(self.field(y, guidance=guidance), x_0, times)
        return x / self.path.coefficients(times[-1])[1]

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | None = None, *, steps: int = 50, guidance: float = 1.0) -> Tensor:
        """The data that noise gives by DDIM, (B, *shape), the data's own kind of numbers; y as in encode."""
        return self.interval.data(solve(self.field(y, guidance=guidance), z, solver="ddim", steps=steps))

    @torch.no_grad()
    def straightness(self, n: int, y: Tensor | None = None, *, steps: int = 100) -> Tensor:
        """How far the ways of n samples are from straight lines, (n,): zoo.nn.solvers.straightness."""
        times = torch.linspace(*self.span, steps + 1, dtype=torch.float64).flip(0)
        x = self.sigma * self.noise(n)
        return straightness(self.field(self.asked(n, y)), x, times)

    def shown(self, x_t: Tensor, t: Tensor) -> Tensor:
        """A stage of a sampling as data, (n, *shape); what is louder than data, as EDM's noise, is made as loud."""
        alpha, sigma = self.path.coefficients(t.double().cpu())
        return self.interval.data(x_t / torch.hypot(alpha, sigma).clamp(min=1).to(x_t))

    def told(self, x_t: Tensor, t: Tensor, c: Condition | None) -> Tensor:
        """What the network tells of x_t at t (B,), (B, *shape), in float32 at least."""
        kind = next(self.backbone.parameters()).dtype
        seen = spread(self.target.scale(self.path, t.double()), x_t) * x_t
        return wide(self.backbone(seen.to(kind), self.path.clock(t), c)).to(x_t.dtype)

    def _condition(self, y: Tensor | None, keep: Tensor | None) -> Condition | None:
        if self.condition is None:
            return None
        if y is None:
            raise ValueError("a model with a condition needs y, the labels or captions of x")
        return self.condition(y, keep)

    def asked(self, n: int, y: Tensor | None) -> Tensor | None:
        """y for n samples: classes drawn evenly, or empty captions, where nothing is asked for."""
        if self.condition is None or y is not None:
            return y
        return self.condition.unasked(n)
