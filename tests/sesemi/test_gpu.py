"""What only a GPU can show of training: mixed precision, the CUDA graph against eager steps, resuming."""

import itertools

import pytest
import torch

from pipelines.batch import Batch, Examples
from pipelines.loader import SemiSupervisedLoader
from pipelines.whitening import prepare
from sesemi.cudagraph import CudaGraph, GraphedStep
from sesemi.networks import build_trunk
from sesemi.task import SesemiTask
from sesemi.trainer import Trainer

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_gpu(count: int, size: int = 24) -> list[Batch]:
    """Batches on the GPU, channels-last, whose class is their brightness."""
    random = torch.Generator("cuda").manual_seed(0)
    out = []
    for _ in range(count):
        images, views = (torch.randn(size, 16, 16, 3, generator=random, device="cuda").permute(0, 3, 1, 2)
                         for _ in range(2))
        labels = torch.arange(size, device="cuda") % 2
        out.append(Batch(Examples(images + labels[:, None, None, None], labels),
                         Examples(views, torch.arange(size, device="cuda") % 6)))
    return out


def build(network="convnet", **options) -> Trainer:
    torch.manual_seed(0)
    task = SesemiTask(build_trunk(network), 2).to("cuda", memory_format=torch.channels_last)
    return Trainer(task, **{"steps": 1000, "base_lr": 0.02, **options})


def sums(trainer: Trainer) -> torch.Tensor:
    """Of class and proxy losses so far, (2,)."""
    found = trainer._sums
    zero = torch.zeros((), device="cuda")
    return torch.stack([found.get("class_loss", zero), found.get("proxy_loss", zero)])


def losses(trainer: Trainer, batches) -> torch.Tensor:
    """Class and proxy loss of each step, (steps, 2)."""
    found = []
    for batch in batches:
        before = sums(trainer)
        trainer.train_step(batch)
        found.append(sums(trainer) - before)
    return torch.stack(found).cpu()


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_falls_and_all_stays_finite(dtype, cuda_graph):
    trainer = build(dtype=dtype, cuda_graph=cuda_graph)
    found = losses(trainer, itertools.islice(itertools.cycle(on_gpu(4)), 60))
    assert found[-8:, 0].mean() < found[:8, 0].mean() / 2
    assert all(value.isfinite().all() for value in trainer.task.state_dict().values())


@pytest.mark.parametrize("network", ["convnet", "wrn-10-1", "nin"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_graph_makes_the_steps_that_eager_mode_makes(network, dtype):
    """Dropout, a learning rate that falls fast, gradient scaling included; equal but for convolutions' rounding."""
    batches = on_gpu(12)
    eager, graphed = (losses(build(network, dtype=dtype, cuda_graph=graph, steps=12), batches)
                      for graph in (False, True))
    assert torch.allclose(graphed, eager, rtol=0.02 if dtype == torch.float32 else 0.1, atol=0.02)
    assert not torch.equal(eager[3], eager[11])


def test_a_frozen_learning_rate_would_be_noticed():
    """The last step of a schedule changes weights little, though the graph was recorded at a high rate."""
    trainer = build(cuda_graph=True, steps=10**6)
    batches = on_gpu(8)
    losses(trainer, batches)
    trainer.step = trainer.steps - 1

    def change() -> float:
        before = trainer.task.class_head.weight.clone()
        trainer.train_step(batches[0])
        return (trainer.task.class_head.weight - before).abs().max().item()
    late = change()
    trainer.step = 0
    assert late < change() / 100


def test_dropout_draws_anew_in_every_replay():
    trainer = build(cuda_graph=True, base_lr=1e-12)
    same = on_gpu(1) * 12
    found = losses(trainer, same)[4:, 0]
    assert len(set(found.tolist())) == len(found)


def test_the_average_follows_in_every_replay():
    """Against a loop; its decay changes from step to step."""
    trainer = build(cuda_graph=True, ema=0.99)
    expected = {name: value.clone() for name, value in trainer.task.state_dict().items()}
    for step, batch in enumerate(on_gpu(12)):
        trainer.train_step(batch)
        decay = (1 + step) / (10 + step)
        for name, value in trainer.task.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in trainer.averaged.task.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pass_takes_the_steps_that_two_take(dtype):
    batches = on_gpu(6)
    found = []
    for fused in (False, True):
        trainer = build(dtype=dtype)
        trainer.task.fused, trainer.task.dropout.p = fused, 0.0
        found.append(losses(trainer, batches))
    assert torch.allclose(*found, rtol=0.02 if dtype == torch.float32 else 0.1, atol=0.02)


def test_an_overflow_in_a_replayed_step_is_skipped():
    trainer = build(dtype=torch.float16, cuda_graph=True)
    batches = on_gpu(8)
    losses(trainer, batches)
    before = {name: value.clone() for name, value in trainer.task.named_parameters()}
    scale = trainer.scaler.get_scale()
    batches[0].labeled.images.mul_(1e30)
    trainer.train_step(batches[0])
    assert trainer.scaler.get_scale() == scale / 2
    assert all(torch.equal(value, before[name]) for name, value in trainer.task.named_parameters())


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_float16_s_first_overflows_leave_momentum_finite(cuda_graph):
    trainer = build(dtype=torch.float16, cuda_graph=cuda_graph)
    trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    losses(trainer, itertools.islice(itertools.cycle(on_gpu(2)), 45))
    tensors = [*trainer.task.state_dict().values(),
               *(state["momentum_buffer"] for state in trainer.optimizer.state.values())]
    assert all(value.isfinite().all() for value in tensors)


def moved(trainer: Trainer, batches) -> torch.Tensor:
    """How these steps change the weights, one vector."""
    before = torch.cat([parameter.detach().flatten() for parameter in trainer.task.parameters()])
    losses(trainer, batches)
    return torch.cat([parameter.detach().flatten() for parameter in trainer.task.parameters()]) - before


@pytest.mark.parametrize("graph_after", [False, True])
def test_goes_on_after_a_checkpoint(tmp_path, graph_after):
    """Also where the run that goes on is of the other kind. Its first step is nearly all momentum, so that what was
    recorded with other momentum would be noticed; six steps take it through a recording of its own."""
    batches = on_gpu(20)
    whole = build("wrn-10-1", cuda_graph=True)
    losses(whole, batches[:10])
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    random = torch.cuda.get_rng_state()
    expected = [moved(whole, [batch]) for batch in batches[10:16]]
    other = build("wrn-10-1", cuda_graph=graph_after)
    losses(other, batches[:6])  # it has recorded a step of its own already
    other.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cuda"))
    torch.cuda.set_rng_state(random)
    for batch, change in zip(batches[10:16], expected, strict=True):
        assert (moved(other, [batch]) - change).norm() < 0.1 * change.norm()
    assert other.step == whole.step == 16


def test_supervised_steps_and_batches_of_another_size():
    """Against eager steps, whose losses would tell a batch that is not the one given."""
    batches = [batch._replace(unlabeled=None) for batch in on_gpu(6)]
    small = Batch(Examples(*(tensor[:10] for tensor in batches[0].labeled)), None)
    given = [*batches, small, batches[0], small]
    eager = losses(build("wrn-10-1"), given)
    trainer = build("wrn-10-1", cuda_graph=True)
    graphed = losses(trainer, given)
    assert torch.allclose(graphed, eager, rtol=0.02, atol=0.01)
    assert (graphed[:, 1] == 0).all()
    assert trainer.images == 7 * 24 + 2 * 10


def test_a_recording_sees_what_the_loader_delivers(small_set):
    """Though the host runs far ahead of the GPU, which has other work: no batch's memory is used again too early."""
    preprocess = prepare("gcn", [small_set], progress=False)

    def seen(graphed: bool) -> torch.Tensor:
        """The sums of the pixels of each batch, (200, 2)."""
        found, number = torch.zeros(200, 2, device="cuda", dtype=torch.float64), torch.zeros(1, device="cuda").long()

        def step(batch: Batch) -> None:
            found.index_copy_(0, number, torch.stack([part.images.double().sum() for part in batch])[None])
            number.add_(1)
        loader = SemiSupervisedLoader(small_set, [small_set], preprocess, batch_unlabeled=4, device="cuda")
        run = GraphedStep(step, CudaGraph(torch.device("cuda"), loader.settle)) if graphed else step
        matrix = torch.randn(4096, 4096, device="cuda")
        for _ in range(200):
            if graphed:
                matrix @ matrix
            else:
                torch.cuda.synchronize()
            run(next(loader))
        loader.close()
        return found.cpu()
    quiet, busy = seen(False), seen(True)
    assert torch.equal(quiet, busy)
    assert len(quiet[:, 0].unique()) == 200
