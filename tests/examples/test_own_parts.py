"""Examples with custom data, networks, objectives and callbacks run."""

import pytest
import torch

import soflow
from support.examples import EXAMPLES, example

SMALL = {"steps": 4}


def test_own_network(tmp_path):
    samples = example("own_network").main(**SMALL, out=str(tmp_path))
    assert samples.shape == (20, 1, 8, 8)
    assert (tmp_path / "threes-and-sevens.png").is_file()


def test_own_data(tmp_path):
    module = example("own_data")
    squares = module.main(**SMALL, out=str(tmp_path))
    assert squares.shape == (30, 1, 16, 16)
    assert soflow.load(tmp_path).class_names == ("disc", "square")
    image, label = module.Shapes()[3]
    assert label == "square"
    assert float(image.min()) >= -1


def test_all_own_parts_is_short(tmp_path):
    module = example("all_of_your_own")
    assert module.main(**SMALL, out=str(tmp_path)).shape == (1000, 2)
    assert len((EXAMPLES / "all_of_your_own.py").read_text().splitlines()) < 60


def test_callbacks_find_a_learning_rate_and_stop(tmp_path):
    rate, step = example("callbacks").main(steps=40, out=str(tmp_path))
    assert 1e-6 < rate < 1
    assert step <= 40
    assert (tmp_path / "learning-rate.png").is_file()


def test_early_stopping_stops_without_improvement():
    class Run:
        def __init__(self, step, best):
            self.step, self.stopped = step, None
            self.state = type("State", (), {"best_step": best})

        def stop(self, why):
            self.stopped = why

    stopping = example("callbacks").EarlyStopping(patience=100)
    for step, best, stops in ((100, 50, False), (150, 50, True), (150, 150, False)):
        run = Run(step, best)
        stopping.on_evaluation(run, {})
        assert (run.stopped is not None) == stops


def test_alpha_flow_is_soflow_divided_by_the_jump_length(tmp_path):
    """With alpha = r and squared errors, its gradient is 2 r times SoFlow's."""
    module = example("own_objective")
    torch.manual_seed(0)
    network = soflow.MLP((3,), width=16, depth=1).double()
    torch.nn.init.normal_(network.final_layer.weight)
    model = soflow.FlowModel(network, (3,))
    r = 0.25
    settings = {"least": r, "eps": 1e12, "guidance": soflow.Guidance()}
    alpha = module.AlphaFlow(flow_matching_share=0.0, **settings)
    middle = soflow.MiddleTime("constant", r, r)
    ours = soflow.SoFlow(flow_matching_share=0.0, p=0.0, middle=middle)
    batch = soflow.Batch(torch.randn(16, 3, dtype=torch.float64))
    draws = alpha.draw((16, 3), torch.Generator().manual_seed(1))
    draws = soflow.Draws(*(x.double() for x in (draws.noise, draws.t, draws.s)), draws.dropped, 0)

    def gradient(objective):
        network.zero_grad()
        objective(model, batch, draws, 1.0).total.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    torch.testing.assert_close(1e12 * gradient(alpha), 2 * r * gradient(ours))


@pytest.mark.slow
def test_alpha_flow_learns_digits(tmp_path):
    assert example("own_objective").main(steps=400, out=str(tmp_path)) < 15
