import torch

from helpers.models import OneLossModel
from helpers.training import evaluate, fit


class Autoencoder(OneLossModel):
    """The smallest one-loss model: a linear copy through four numbers, with a schedule."""

    def __init__(self, settings):
        super().__init__(settings)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 4), torch.nn.Linear(4, 784))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return [optimizer], [schedule]

    def losses(self, normal, anomalous):
        return {"reconstruction": (normal - self.reconstruct(normal)).square().mean()}

    def reconstruct(self, x):
        return self.net(x).view_as(x)

    def anomaly_score(self, x):
        return (x - self.reconstruct(x)).square().flatten(1).mean(1)


def test_one_loss_model_trains_and_its_schedule_advances_every_batch(run, data):
    model = Autoencoder({"epochs": 1, "lr": 1e-2})
    before = model.net[1].weight.clone()
    trained = fit(model, data, run)
    assert not torch.equal(model.net[1].weight, before)
    assert evaluate(model, data).score.shape == (len(data.test),)
    rate = trained.model.trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == 1e-2 * 0.5**8


def test_weights_come_from_the_settings_by_name(baseline):
    model = baseline(weight_a=3.0)
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(10.0)}
    assert model.weighted_sum(losses).item() == 13.0


def test_each_adversarial_step_moves_only_its_own_side(data, baseline):
    """The generator's step must leave the discriminators alone, and the other way round."""
    model = baseline()
    normal, anomalous = next(iter(data.train_dataloader()))
    moved = []

    def watch(optimizer, loss):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved.append(
            {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        )

    optimizers = model.configure_optimizers()
    model.optimizers = lambda use_pl_optimizer: optimizers
    model.lr_schedulers = lambda: None
    model.descend = watch
    model.training_step((normal, anomalous), 0)
    assert moved == [{"discriminators"}, {"generator"}]
    assert set(model.loss_names) >= {"reconstruction", "repulsion", "discriminator_normal", "discriminator_anomalous"}


def test_one_class_has_no_anomalous_losses(data, baseline):
    model = baseline()
    normal, anomalous = next(iter(data.train_dataloader()))
    made = model.generate(normal, anomalous[:0])
    assert set(model.generator_losses(normal, anomalous[:0], made)) == {"reconstruction", "adversarial_normal"}
    assert set(model.discriminator_losses(normal, anomalous[:0], made)) == {"discriminator_normal"}


def test_repulsion_is_bounded_and_lets_go(baseline):
    from tests.conftest import notebook_definitions

    repulsion = notebook_definitions("01_baseline_gan.ipynb")["repulsion"]
    error = torch.tensor([0.0, 0.1, 0.25, 5.0, 1e6], requires_grad=True)
    loss = repulsion(error, 0.25)
    loss.sum().backward()
    assert loss.tolist() == [0.25, 0.15000000596046448, 0.0, 0.0, 0.0]
    assert error.grad[3:].tolist() == [0.0, 0.0]


def test_weight_decay_comes_from_the_settings(baseline):
    weights = [torch.nn.Parameter(torch.zeros(1))]
    assert baseline().adam(weights, 1e-3).param_groups[0]["weight_decay"] == 0
    assert baseline(weight_decay=0.25).adam(weights, 1e-3).param_groups[0]["weight_decay"] == 0.25
