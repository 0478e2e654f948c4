import pytest
import torch
import torch.nn.functional as F

from models.heads import projection_head

NORMS = {
    "batch": lambda x, norm: F.batch_norm(x, None, None, norm.weight, norm.bias, training=True),
    "layer": lambda x, norm: F.layer_norm(x, (6,), norm.weight, norm.bias),
    "none": lambda x, norm: x,
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_head_is_a_perceptron_of_one_hidden_layer_written_out(norm):
    torch.manual_seed(0)
    head = projection_head(3, 6, 4, norm)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape)
    x = torch.randn(8, 3)
    assert (head[0].bias is None) == (norm != "none")  # a norm would take the bias out again
    hidden = F.linear(x, head[0].weight, head[0].bias)
    expected = NORMS[norm](hidden, head[1]).clamp(min=0) @ head[3].weight.T + head[3].bias
    assert head(x).shape == (8, 4) and torch.allclose(head(x), expected, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_a_deeper_head_repeats_the_hidden_layer_and_may_normalize_its_output(norm):
    torch.manual_seed(0)
    head, x = projection_head(3, 6, 4, norm, layers=3, last_norm=True), torch.randn(8, 3)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape)
    hidden = x
    for place in (0, 3):
        hidden = F.linear(hidden, head[place].weight, head[place].bias)
        hidden = NORMS[norm](hidden, head[place + 1]).clamp(min=0)
    output = F.linear(hidden, head[6].weight, head[6].bias)
    plain = {
        "batch": (output - output.mean(0)) / (output.var(0, correction=0) + 1e-5).sqrt(),
        "layer": F.layer_norm(output, (4,)),
        "none": output,
    }
    assert len(head) == 8 and not list(head[7].parameters())
    assert torch.allclose(head(x), plain[norm], atol=1e-4)
